//! The least that a component of Spin can do: what `make bench-broker` compares the broker with.

#[cfg(target_family = "wasm")]
mod component {
    use spin_sdk::http::{IntoResponse, Request};
    use spin_sdk::http_service;

    #[http_service]
    async fn hello(_: Request) -> impl IntoResponse {
        "Hello, Spin"
    }
}
