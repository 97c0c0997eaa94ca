//! The plugin host from outside: guests in WebAssembly text, compiled by a real child process, called as the daemon does.

mod calls;
mod compile;
mod fixtures;
mod guest;
mod harness;
mod hostile;
mod wasi;
