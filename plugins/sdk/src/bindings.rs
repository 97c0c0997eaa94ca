//! What `wit-bindgen` makes of the interface: the host's functions, and each export in a module of its own, so that a
//! plugin has exactly those that it names. Everything is offered in a better form by the crate's root.
#![allow(missing_docs, clippy::all)]

wit_bindgen::generate!({
    path: "wit",
    world: "imports",
    additional_derives: [PartialEq],
});

pub mod lifecycle {
    wit_bindgen::generate!({
        path: "wit",
        inline: "package sdk:lifecycle; world sdk-lifecycle { export aman:plugin/lifecycle@0.1.0; }",
        with: { "aman:plugin/types@0.1.0": crate::bindings::aman::plugin::types },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_lifecycle",
        default_bindings_module: "aman_plugin::bindings::lifecycle",
    });
}

pub mod events {
    wit_bindgen::generate!({
        path: "wit",
        inline: "package sdk:events; world sdk-events { export aman:plugin/events@0.1.0; }",
        with: { "aman:plugin/types@0.1.0": crate::bindings::aman::plugin::types },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_events",
        default_bindings_module: "aman_plugin::bindings::events",
    });
}

pub mod routes {
    wit_bindgen::generate!({
        path: "wit",
        inline: "package sdk:routes; world sdk-routes { export aman:plugin/http-handler@0.1.0; }",
        with: { "aman:plugin/types@0.1.0": crate::bindings::aman::plugin::types },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_routes",
        default_bindings_module: "aman_plugin::bindings::routes",
    });
}

pub mod tools {
    wit_bindgen::generate!({
        path: "wit",
        inline: "package sdk:tools; world sdk-tools { export aman:plugin/tools@0.1.0; }",
        with: { "aman:plugin/types@0.1.0": crate::bindings::aman::plugin::types },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_tools",
        default_bindings_module: "aman_plugin::bindings::tools",
    });
}

pub mod source {
    wit_bindgen::generate!({
        path: "wit",
        inline: "package sdk:source; world sdk-source { export aman:plugin/source@0.1.0; }",
        with: { "aman:plugin/types@0.1.0": crate::bindings::aman::plugin::types },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_source",
        default_bindings_module: "aman_plugin::bindings::source",
    });
}
