//! The connections of one run.

use std::sync::Arc;

use super::timings::Timings;
use crate::node::connection::Connections;

#[derive(Debug)]
pub struct Servers {
    pub redis: Connections,
    pub sentinels: Connections,
    pub timings: Arc<Timings>,
}
