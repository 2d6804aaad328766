//! A minimal component for Spin, with which `make bench-broker` compares the broker.
//!
//! At `/` it answers with hello. At `/value` it reads a value of its store first. That is the least cost of
//! any answer that needs a value on this host.

#[cfg(target_family = "wasm")]
mod component {
    use std::sync::OnceLock;

    use spin_sdk::http::{IntoResponse, Request};
    use spin_sdk::http_service;
    use spin_sdk::key_value::{Error, Store};

    static STORE: OnceLock<Store> = OnceLock::new();

    #[http_service]
    async fn hello(request: Request) -> impl IntoResponse {
        if request.uri().path() != "/value" {
            return Ok("Hello, Spin");
        }
        read_value().await.map(|()| "Hello, Spin").map_err(|error| error.to_string())
    }

    async fn read_value() -> Result<(), Error> {
        let store = match STORE.get() {
            Some(store) => store,
            None => {
                let store = Store::open_default().await?;
                STORE.get_or_init(|| store)
            }
        };
        store.get("key").await.map(drop)
    }
}
