//! One connection to a server: from the first word to the last.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, ClientConfig, ContentBlock,
    PaginatedRequestParams, ProtocolVersion, ResourceContents, SubscriptionFilter, Tool,
};
use rmcp::service::{NotificationContext, RunningService, ServiceError};
use rmcp::transport::async_rw::AsyncRwTransport;
use rmcp::transport::streamable_http_client::{StreamableHttpClientTransport, StreamableHttpError};
use rmcp::{ClientHandler, ClientLifecycleMode, ClientServiceExt, Peer, RoleClient};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};

use crate::streamable::{self, Out, Unsent, WayOut};
use crate::{MESSAGE_BYTES_MAX, implementation};

/// Pages of a list that are asked for.
const PAGES_MAX: usize = 32;
/// How long a connection that is ended may take to say so.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// How soon a server is listened to again that ended that.
const LISTEN_AGAIN: Duration = Duration::from_secs(60);

/// The pipes of a program that speaks on its standard input and output.
pub struct Pipes {
    /// What it reads.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// What it writes.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
}

/// How a server is reached.
pub enum Way {
    /// Over the pipes of a program that runs.
    Pipes(Pipes),
    /// By streamable HTTP: the address, which only names it here, and what sends requests there.
    Http(String, WayOut),
}

/// A tool as its server describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Offered {
    /// Its name there.
    pub name: String,
    /// What it does, in the server's words.
    pub description: String,
    /// JSON Schema of its arguments.
    pub schema: Value,
    /// The server says that it changes nothing.
    pub read_only: bool,
}

/// What a tool answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// All of its content in words; what is no text is described.
    pub text: String,
    /// The same for programs, if the server gives it.
    pub value: Option<Value>,
    /// The server says that it failed.
    pub failed: bool,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The server says no, or never heard of it.
    Refused(String),
    /// The call left, and nobody knows what became of it.
    Lost(String),
}

/// Hears what a server says of itself.
struct Listener {
    changed: Arc<Notify>,
}

impl ClientHandler for Listener {
    fn get_info(&self) -> ClientConfig {
        ClientConfig::new(ClientCapabilities::default(), implementation())
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.changed.notify_one();
    }
}

/// A connection; ends when it is dropped.
pub struct Connection {
    peer: Peer<RoleClient>,
    ended: watch::Receiver<bool>,
    ending: Arc<Notify>,
}

impl Connection {
    /// Connects. A server is asked for the newest version first and then, unless `old_first`, greeted as those of before
    /// 2026 want it; some of these cannot bear the question. `changed` hears that its tools are others by now.
    pub async fn open(way: Way, old_first: bool, changed: Arc<Notify>) -> Result<Connection, String> {
        let listener = Listener { changed: Arc::clone(&changed) };
        let lifecycle = if old_first {
            ClientLifecycleMode::Initialize
        } else {
            let preferred_versions = vec![ProtocolVersion::V_2026_07_28];
            ClientLifecycleMode::Auto { preferred_versions, legacy_version: None }
        };
        let service = match way {
            Way::Pipes(Pipes { stdin, stdout }) => {
                let transport = AsyncRwTransport::new(stdout, stdin).with_max_line_length(MESSAGE_BYTES_MAX);
                listener.serve_with_lifecycle(transport, lifecycle).await
            }
            Way::Http(url, send) => {
                let config = streamable::config(&url);
                let transport =
                    StreamableHttpClientTransport::with_client(Out { send, streamed: Arc::default() }, config);
                listener.serve_with_lifecycle(transport, lifecycle).await
            }
        };
        let service = service.map_err(|error| chain(&error))?;
        let peer = service.peer().clone();
        let (told, ended) = watch::channel(false);
        let ending = Arc::new(Notify::new());
        tokio::spawn(attend(service, Arc::clone(&ending), told, changed));
        Ok(Connection { peer, ended, ending })
    }

    /// The version that was agreed on, and who the server says it is.
    pub fn server(&self) -> (String, Option<String>) {
        let Some(info) = self.peer.peer_info() else { return (String::new(), None) };
        let named = info.server_info.as_ref().map(|server| format!("{} {}", server.name, server.version));
        (info.protocol_version.as_str().to_owned(), named)
    }

    /// Ends once the connection has.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        let _gone = ended.wait_for(|ended| *ended).await;
    }

    /// Ends the connection, and returns once it has ended, or soon after.
    pub async fn close(&self) {
        self.ending.notify_one();
        let _late = tokio::time::timeout(CLOSE_MAX, self.ended()).await;
    }

    /// Its tools, at most `count_max`.
    pub async fn tools(&self, count_max: usize) -> Result<Vec<Offered>, String> {
        // Without tools of its own a server need not know the question.
        if self.peer.peer_info().is_some_and(|info| info.capabilities.tools.is_none()) {
            return Ok(Vec::new());
        }
        let (mut found, mut cursor) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            let page = PaginatedRequestParams::default().with_cursor(cursor);
            let list = self.peer.list_tools(Some(page)).await.map_err(|error| chain(&error))?;
            found.extend(list.tools.into_iter().take(count_max - found.len()).map(offered));
            cursor = list.next_cursor;
            if cursor.is_none() || found.len() >= count_max {
                break;
            }
        }
        Ok(found)
    }

    /// Calls a tool. Dropping the future tells the server that nobody waits for it any more.
    pub async fn call(&self, name: &str, arguments: Map<String, Value>) -> Result<Answer, Failure> {
        let params = CallToolRequestParams::new(name.to_owned()).with_arguments(arguments);
        match self.peer.call_tool_once(params).await {
            Ok(CallToolResponse::Complete(result)) => Ok(answer(result)),
            Ok(CallToolResponse::InputRequired(_)) => {
                Err(Failure::Refused("the server asks a person for more, and aman has nobody to ask there".to_owned()))
            }
            Ok(_) => Err(Failure::Lost("the server goes on with it and answers later; aman does not wait".to_owned())),
            Err(error) => Err(failure(&error)),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.ending.notify_one();
    }
}

/// Holds a connection until its end. Servers of the newest version tell of changed tools only to whoever listens.
async fn attend(
    service: RunningService<RoleClient, Listener>,
    ending: Arc<Notify>,
    told: watch::Sender<bool>,
    changed: Arc<Notify>,
) {
    let peer = service.peer().clone();
    let listens = peer.peer_info().is_some_and(|info| {
        let tells = info.capabilities.tools.as_ref().is_some_and(|tools| tools.list_changed == Some(true));
        tells && info.protocol_version >= ProtocolVersion::V_2026_07_28
    });
    let stop = service.cancellation_token();
    let waiting = service.waiting();
    let listening = async {
        if !listens {
            return std::future::pending().await;
        }
        loop {
            let wanted = SubscriptionFilter::builder().tools_list_changed().build();
            if let Ok(mut heard) = peer.listen(wanted).await {
                while let Ok(Some(_)) = heard.next().await {
                    changed.notify_one();
                }
            }
            // Nobody told what changed meanwhile.
            tokio::time::sleep(LISTEN_AGAIN).await;
            changed.notify_one();
        }
    };
    let mut waiting = std::pin::pin!(waiting);
    tokio::select! {
        _ = &mut waiting => {}
        () = listening => {}
        () = ending.notified() => {
            stop.cancel();
            let _late = tokio::time::timeout(CLOSE_MAX, waiting).await;
        }
    }
    // Nobody listens any more when the connection was dropped.
    let _nobody = told.send(true);
}

fn offered(tool: Tool) -> Offered {
    let hints = tool.annotations.as_ref();
    let title = tool.title.or_else(|| hints.and_then(|hints| hints.title.clone()));
    let description = tool.description.map(std::borrow::Cow::into_owned).or(title).unwrap_or_default();
    Offered {
        name: tool.name.into_owned(),
        description,
        read_only: hints.and_then(|hints| hints.read_only_hint) == Some(true),
        schema: Value::Object(Arc::unwrap_or_clone(tool.input_schema)),
    }
}

fn answer(result: CallToolResult) -> Answer {
    let texts: Vec<String> = result.content.iter().map(words).collect();
    let value = result.structured_content;
    let text = match &value {
        Some(value) if texts.is_empty() => value.to_string(),
        _ => texts.join("\n"),
    };
    Answer { text, value, failed: result.is_error == Some(true) }
}

/// Content as text; what a model cannot read here is only named.
fn words(block: &ContentBlock) -> String {
    // In base64 three bytes are four characters.
    let bytes = |base64: &str| base64.len() / 4 * 3;
    match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => format!("[picture, {}, {} bytes]", image.mime_type, bytes(&image.data)),
        ContentBlock::Audio(audio) => format!("[sound, {}, {} bytes]", audio.mime_type, bytes(&audio.data)),
        ContentBlock::ResourceLink(link) => format!("[link to {}: {}]", link.name, link.uri),
        ContentBlock::Resource(embedded) => match &embedded.resource {
            ResourceContents::TextResourceContents { uri, text, .. } => format!("[{uri}]\n{text}"),
            ResourceContents::BlobResourceContents { uri, blob, .. } => format!("[{uri}, {} bytes]", bytes(blob)),
            _ => "[content of a kind that aman does not know]".to_owned(),
        },
        _ => "[content of a kind that aman does not know]".to_owned(),
    }
}

fn failure(error: &ServiceError) -> Failure {
    match error {
        ServiceError::McpError(said) => Failure::Refused(said.message.clone().into_owned()),
        ServiceError::TransportSend(sending) if was_unsent(sending.error.as_ref()) => Failure::Refused(chain(error)),
        _ => Failure::Lost(chain(error)),
    }
}

/// True when the request of a failure never left.
fn was_unsent(error: &(dyn StdError + 'static)) -> bool {
    let http = error.downcast_ref::<StreamableHttpError<Unsent>>();
    matches!(http, Some(StreamableHttpError::Client(unsent)) if !unsent.may_have_left)
}

/// An error with everything below it, as far as it says something new.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        below = error.source();
    }
    text
}
