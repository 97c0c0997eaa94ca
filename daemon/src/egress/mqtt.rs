//! How MQTT brokers are spoken to, by the source and the sink alike.

use std::time::Duration;

use rumqttc::MqttOptions;

use crate::config::sources::Broker;

const KEEP_ALIVE: Duration = Duration::from_secs(60);
const PACKET_BYTES_MAX: usize = 1 << 20;

/// A connection to `broker`, which knows this client again under `name` unless the configuration has another.
pub fn options(broker: &Broker, name: String) -> MqttOptions {
    let name = broker.client_id.clone().unwrap_or(name);
    let mut options = MqttOptions::new(name, broker.host.clone(), broker.port);
    options.set_keep_alive(KEEP_ALIVE).set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    if let Some((user, password)) = &broker.login {
        options.set_credentials(user, password.expose());
    }
    options
}
