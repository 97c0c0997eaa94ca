//! Plugins: WebAssembly components that react to events, serve routes and offer tools, within what their manifests ask for.

pub mod host;
