//! The least that a component of Spin can do: what `make bench-broker` compares the broker with.
//!
//! At `/` it says hello. At `/value` it reads a value of its store first, which is what any answer costs that needs one, on
//! the host at hand.

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
