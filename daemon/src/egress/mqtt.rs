//! How MQTT brokers are spoken to, by the source and the sink alike.

use std::io;

use rumqttc::{AsyncClient, ClientBuildError, EventLoop, MqttOptions};

use super::Egress;
use crate::config::broker::Broker;

const KEEP_ALIVE_S: u16 = 60;
const PACKET_BYTES_MAX: usize = 1 << 20;

/// A connection to `broker`, which knows this client again under `name` unless the configuration has another.
pub fn options(broker: &Broker, name: String, egress: &Egress) -> MqttOptions {
    let name = broker.client_id.clone().unwrap_or(name);
    let mut options = MqttOptions::new(name, (broker.host.clone(), broker.port));
    options.set_keep_alive(KEEP_ALIVE_S).set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    if let Some((user, password)) = &broker.login {
        options.set_credentials(user, password.expose().to_owned());
    }
    if let Some(secured) = &broker.tls {
        let (egress, secured, host) = (egress.clone(), secured.clone(), broker.host.clone());
        options.set_socket_connector(move |place, network| {
            let (egress, secured, host) = (egress.clone(), secured.clone(), host.clone());
            async move {
                let tcp = rumqttc::default_socket_connect(place, network).await?;
                egress.encrypt(tcp, &host, &secured).await.map_err(io::Error::other)
            }
        });
    }
    options
}

/// A client with room for `requests_max` requests that wait for the connection, and what drives it.
pub fn client(options: MqttOptions, requests_max: usize) -> Result<(AsyncClient, EventLoop), ClientBuildError> {
    AsyncClient::builder(options).capacity(requests_max).try_build()
}
