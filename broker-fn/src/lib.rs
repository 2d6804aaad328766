//! The broker: collects the addresses of Redis servers and Sentinels that want to form one system.

pub mod api;
