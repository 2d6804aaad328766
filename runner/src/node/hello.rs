//! The channel on which Sentinels introduce themselves.

use super::endpoint::Endpoint;

/// The name of the channel. A Sentinel accepts the same message from a client as well
/// (`sentinelPublishCommand` in Redis's `sentinel.c`).
pub const HELLO_CHANNEL: &str = "__sentinel__:hello";

/// A Sentinel's introduction: `ip,port,myid,current-epoch,group,master-ip,master-port,master-config-epoch`. A
/// Sentinel publishes it on every server that it monitors: as soon as it has connected, and then every two
/// seconds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hello {
    pub sentinel: Endpoint,
    pub group: String,
    pub master: Endpoint,
    /// The epoch in which `master` became the master.
    pub config_epoch: u64,
}

impl Hello {
    /// `None`: the message is not a hello.
    pub fn parse(message: &str) -> Option<Self> {
        let fields: Vec<_> = message.split(',').collect();
        let &[host, port, _, _, group, master_host, master_port, config_epoch] = fields.as_slice() else {
            return None;
        };
        Some(Self {
            sentinel: Endpoint::new(host, port.parse().ok()?),
            group: group.to_owned(),
            master: Endpoint::new(master_host, master_port.parse().ok()?),
            config_epoch: config_epoch.parse().ok()?,
        })
    }
}

/// A message for the channel that is not a hello: Sentinels ignore it and log nothing. It shows whether the
/// master's replication stream flows, because a `PUBLISH` is replicated.
pub const NO_HELLO: &str = "sentinel-runner: does the stream flow?";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_says_who_it_is_and_what_it_watches() {
        let hello = Hello::parse("10.0.0.9,26379,0123abcd,4,mymaster,10.0.0.7,6379,3").unwrap();
        assert_eq!((hello.sentinel, hello.group.as_str()), (Endpoint::new("10.0.0.9", 26379), "mymaster"));
        assert_eq!((hello.master, hello.config_epoch), (Endpoint::new("10.0.0.7", 6379), 3));
        assert_eq!(Hello::parse(NO_HELLO), None);
        assert_eq!(Hello::parse("a,b,c,d,e,f,g,h"), None);
    }
}
