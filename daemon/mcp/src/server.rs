//! The server's half: tools that somebody else has, shown and called in whatever version a client speaks. No sessions: each
//! request stands for itself, so there is nothing to keep, and nothing to run full.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ElicitRequest, ElicitRequestParams,
    ElicitationSchema, InputRequest, InputRequiredResult, ListToolsResult, PaginatedRequestParams, ProtocolVersion,
    ServerCapabilities, ServerConfig, Tool, ToolAnnotations,
};
use rmcp::service::RequestContext;
use rmcp::transport::StreamableHttpServerConfig;
use rmcp::transport::streamable_http_server::StreamableHttpService;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::{Map, Value};

use crate::implementation;

/// The greatest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// The name of the one question that is asked back.
const QUESTION: &str = "confirm";

/// A tool as it is shown to clients.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// Its name.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// What it does and when to use it.
    pub description: &'static str,
    /// JSON Schema of its arguments: an object.
    pub schema: Value,
    /// It changes nothing.
    pub read_only: bool,
    /// It can end or remove something.
    pub destructive: bool,
}

/// A call.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The tool.
    pub tool: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
    /// What the person answered when they were asked; none = they were not.
    pub confirmed: Option<bool>,
    /// True when they can be asked.
    pub can_ask: bool,
}

/// What comes of a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Given {
    /// It is done.
    Done(Value),
    /// It failed, or was refused: what to tell, and the same for programs.
    Failed(String, Option<Value>),
    /// A person must agree to it first; this is what they are asked. Only when they can be.
    Ask(String),
}

/// A call under way.
pub type Calling = Pin<Box<dyn Future<Output = Given> + Send>>;

/// What is served to one client.
#[derive(Clone)]
pub struct Server {
    /// What a model is told of all of it.
    pub instructions: &'static str,
    /// The tools that this client may call.
    pub tools: Arc<Vec<Shown>>,
    /// Calls one of them.
    pub call: Arc<dyn Fn(Asked) -> Calling + Send + Sync>,
}

impl Server {
    /// Answers one HTTP request. Whether its host and origin are good was found out before.
    pub async fn answer(self, mut request: http::Request<Bytes>) -> http::Response<Bytes> {
        // The library asks for one, although it is told not to look at it.
        request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("localhost"));
        let config = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(false)
            .with_json_response(true)
            .disable_allowed_hosts()
            .disable_allowed_origins()
            .with_sse_keep_alive(None);
        let service =
            StreamableHttpService::new(move || Ok(self.clone()), Arc::new(NeverSessionManager::default()), config);
        let (head, body) = service.handle(request.map(Full::new)).await.into_parts();
        match Limited::new(body, ANSWER_BYTES_MAX).collect().await {
            Ok(body) => http::Response::from_parts(head, body.to_bytes()),
            Err(error) => {
                let why =
                    if error.is::<LengthLimitError>() { "The answer is too long." } else { "The answer broke off." };
                let mut failed = http::Response::new(Bytes::from(why));
                *failed.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
                failed
            }
        }
    }

    fn shown(&self, tool: &Shown) -> Tool {
        let schema = tool.schema.as_object().cloned().unwrap_or_default();
        let hints = ToolAnnotations::with_title(tool.title).read_only(tool.read_only).destructive(tool.destructive);
        Tool::new(tool.name, tool.description, schema).with_annotations(hints.open_world(false))
    }
}

/// True when the client can put a question to a person and bring back the answer.
fn can_ask(context: &RequestContext<RoleServer>) -> bool {
    let version = context.protocol_version();
    let knows = version.is_some_and(|version| version >= ProtocolVersion::V_2026_07_28);
    knows && context.client_capabilities().is_some_and(|can| can.elicitation.is_some())
}

/// What the person answered: `Some(true)` only for a yes in so many words.
fn confirmed(params: &CallToolRequestParams) -> Option<bool> {
    let answer = params.input_responses.as_ref()?.get(QUESTION)?;
    Some(answer["action"] == "accept" && answer["content"][QUESTION] == true)
}

fn question(message: String) -> Result<CallToolResponse, ErrorData> {
    let failed = |why: &str| ErrorData::internal_error(why.to_owned(), None);
    let schema = ElicitationSchema::builder().required_bool(QUESTION).build().map_err(failed)?;
    let params = ElicitRequestParams::FormElicitationParams { meta: None, message, requested_schema: schema };
    let asked = InputRequest::Elicitation(ElicitRequest::new(params));
    Ok(InputRequiredResult::from_input_requests([(QUESTION.to_owned(), asked)].into()).into())
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(implementation())
            .with_instructions(self.instructions)
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.tools.iter().find(|tool| tool.name == name).map(|tool| self.shown(tool))
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(self.tools.iter().map(|tool| self.shown(tool)).collect()))
    }

    async fn call_tool(
        &self,
        params: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if !self.tools.iter().any(|tool| tool.name == params.name) {
            let why = format!("There is no tool '{}' here; tools/list tells which there are.", params.name);
            return Err(ErrorData::invalid_params(why, None));
        }
        let asked = Asked {
            confirmed: confirmed(&params),
            can_ask: can_ask(&context),
            tool: params.name.into_owned(),
            arguments: params.arguments.unwrap_or_default(),
        };
        match (self.call)(asked).await {
            Given::Done(value) => Ok(CallToolResult::structured(value).into()),
            Given::Failed(text, value) => {
                let mut result = CallToolResult::error(vec![ContentBlock::text(text)]);
                result.structured_content = value;
                Ok(result.into())
            }
            Given::Ask(message) => question(message),
        }
    }
}
