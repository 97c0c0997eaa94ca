//! Interface 0.1 in Rust, made of schemas/wit/0.1 when the crate is compiled.

#![allow(missing_docs, reason = "the comments of the WIT files are all that can be said")]

wasmtime::component::bindgen!({
    path: "../../schemas/wit/0.1",
    world: "plugin",
    imports: {
        "aman:plugin/bus": async,
        "aman:plugin/kv": async,
        "aman:plugin/sql": async,
        "aman:plugin/http-client": async,
        "aman:plugin/workflows": async,
        "aman:plugin/notify": async,
        "aman:plugin/agents": async,
        "aman:plugin/chat": async,
        "aman:plugin/clock.sleep": async,
    },
    exports: { default: async },
    additional_derives: [PartialEq],
});
