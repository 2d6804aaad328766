//! The address of a server, as Redis writes it.

use std::fmt;
use std::net::IpAddr;

use broker_fn::api::Addr;

/// A host and a port. Unlike a registration's [`Addr`], it can hold any address that a server reports, even a
/// name that the broker would not register.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// An address or a name, without brackets.
    pub host: String,
    pub port: u16,
}

impl Endpoint {
    /// From a host and a port.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// Whether the host is a name. A name may resolve to another address tomorrow.
    #[must_use]
    pub fn is_name(&self) -> bool {
        self.host.parse::<IpAddr>().is_err()
    }
}

impl From<&Addr> for Endpoint {
    fn from(addr: &Addr) -> Self {
        Self::new(addr.host.as_str(), addr.port.get())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
