//! The connections of one run.

use std::sync::Arc;

use broker_fn::api::Kind;

use super::timings::Timings;
use crate::node::connection::Connections;

#[derive(Debug)]
pub struct Servers {
    pub redis: Connections,
    pub sentinels: Connections,
    pub timings: Arc<Timings>,
}

impl Servers {
    /// The connections to nodes of this kind.
    pub fn of(&self, kind: Kind) -> &Connections {
        match kind {
            Kind::Redis => &self.redis,
            Kind::Sentinel => &self.sentinels,
        }
    }
}
