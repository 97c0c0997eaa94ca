//! What this plugin does, in a sentence.

use aman_plugin::{Request, Response, Result, Routes, export, json};

struct Plugin;

impl Routes for Plugin {
    fn handle(request: Request) -> Result<Response> {
        match request.target() {
            ("GET", "/my-plugin/hello/{name}") => Response::json(&json!({ "hello": request.param("name")? })),
            _ => Err(request.unknown()),
        }
    }
}

export!(Plugin: Routes);
