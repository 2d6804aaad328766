//! The interfaces that a component for WASI 0.2 calls: Spin's interfaces of version 2.0. Their calls block
//! the instance, which has only one request.

use std::sync::atomic::Ordering;

use wasmtime::component::{HasSelf, Linker, Resource};

use self::bindings::fermyon::spin::{key_value, variables};
use super::State;
use crate::host::key_value::{Keys, Store};
use crate::host::manifest::validate_name;

mod bindings {
    wasmtime::component::bindgen!({
        path: "harness/host/wit/spin-2.wit",
        inline: "
            package e2e:local-host;
            world guest {
                import fermyon:spin/key-value@2.0.0;
                import fermyon:spin/variables@2.0.0;
            }
        ",
        imports: { default: async | trappable },
        require_store_data_send: true,
        with: { "fermyon:spin/key-value.store": crate::host::key_value::Store },
    });
}

pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    key_value::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    variables::add_to_linker::<_, HasSelf<State>>(linker, |state| state)
}

type StoreResult<T> = wasmtime::Result<Result<T, key_value::Error>>;

impl State {
    /// The open store behind a handle. Counts a call.
    fn called(&self, handle: &Resource<Store>) -> wasmtime::Result<Store> {
        self.app.calls.fetch_add(1, Ordering::Relaxed);
        Ok(self.stores.get(handle)?.clone())
    }
}

impl key_value::Host for State {}

impl key_value::HostStore for State {
    async fn open(&mut self, label: String) -> StoreResult<Resource<Store>> {
        self.app.calls.fetch_add(1, Ordering::Relaxed);
        if !self.app.labels.contains(&label) {
            return Ok(Err(key_value::Error::AccessDenied));
        }
        let store = match self.app.key_value.store(&label).await {
            Ok(store) => store,
            Err(error) => return Ok(Err(key_value::Error::Other(error))),
        };
        Ok(self.stores.push(store).map_err(|_| key_value::Error::StoreTableFull))
    }

    async fn get(&mut self, handle: Resource<Store>, key: String) -> StoreResult<Option<Vec<u8>>> {
        Ok(self.called(&handle)?.get(&key).await.map_err(key_value::Error::Other))
    }

    async fn set(&mut self, handle: Resource<Store>, key: String, value: Vec<u8>) -> StoreResult<()> {
        Ok(self.called(&handle)?.set(&key, &value).await.map_err(key_value::Error::Other))
    }

    async fn delete(&mut self, handle: Resource<Store>, key: String) -> StoreResult<()> {
        Ok(self.called(&handle)?.delete(&key).await.map_err(key_value::Error::Other))
    }

    async fn exists(&mut self, handle: Resource<Store>, key: String) -> StoreResult<bool> {
        let value = self.called(&handle)?.get(&key).await;
        Ok(value.map(|value| value.is_some()).map_err(key_value::Error::Other))
    }

    async fn get_keys(&mut self, handle: Resource<Store>) -> StoreResult<Vec<String>> {
        let Keys { mut keys, outcome } = self.called(&handle)?.keys();
        let mut taken = vec![];
        while let Some(handful) = keys.recv().await {
            taken.extend(handful);
        }
        let outcome = outcome.await.unwrap_or_else(|_| Err("the listing broke off".into()));
        Ok(outcome.map(|()| taken).map_err(key_value::Error::Other))
    }

    async fn drop(&mut self, handle: Resource<Store>) -> wasmtime::Result<()> {
        self.stores.delete(handle)?;
        Ok(())
    }
}

impl variables::Host for State {
    async fn get(&mut self, name: String) -> wasmtime::Result<Result<String, variables::Error>> {
        self.app.calls.fetch_add(1, Ordering::Relaxed);
        if let Err(why) = validate_name(&name) {
            return Ok(Err(variables::Error::InvalidName(why)));
        }
        let value = self.app.variable(&name);
        Ok(value.ok_or_else(|| variables::Error::Undefined(format!("no variable {name:?}"))))
    }
}
