//! `probe`: one look at one node, for Docker and for probes that understand only an exit code.

use broker_fn::api::Kind;

use crate::cli::{ProbeArgs, ProbeRole};
use crate::config::Nodes;
use crate::error::Failure;
use crate::node::endpoint::Endpoint;
use crate::node::ready::{SentinelNow, ServerNow};
use crate::node::replication::Role;
use crate::node::unusable::Unusable;
use crate::report::Report;
use crate::report::document::Ending;

/// `probe`.
///
/// # Errors
///
/// If the node does not answer, or does not have the requested role or state: exit code 1.
pub async fn probe(typed: ProbeArgs, report: &Report) -> Result<Ending, Failure> {
    let ProbeArgs { kind, at, role, ready, access, command_timeout } = typed;
    let mut wrong = Vec::new();
    let nodes = Nodes::resolve(access, command_timeout, &mut wrong);
    if kind == Kind::Sentinel && role.is_some() {
        wrong.push("--role: a Sentinel has no role".to_owned());
    }
    if !wrong.is_empty() {
        return Err(Failure::Usage(wrong));
    }
    let endpoint =
        at.as_ref().map_or_else(|| Endpoint::new("127.0.0.1", kind.default_port().get()), Endpoint::from);
    let servers = nodes.connections(report);
    let question = match kind {
        Kind::Redis => ServerNow::question(),
        Kind::Sentinel => SentinelNow::question(),
    };
    let not_so = |why: String| Failure::Other(anyhow::anyhow!("{endpoint}: {why}"));
    let replies = servers.of(kind).send(&endpoint, &question).await;
    let replies = replies.map_err(|error| not_so(Unusable::from_connection(kind, error).to_string()))?;
    let what = match kind {
        Kind::Redis => ServerNow::parse(&replies).and_then(|now| {
            if ready {
                now.ready()?;
            }
            is_role(&now.replication.role, role)
        }),
        Kind::Sentinel => SentinelNow::parse(&replies).and_then(|now| {
            if ready {
                now.ready()?;
            }
            let names: Vec<String> =
                now.masters.iter().map(|master| format!("{} at {}", master.name, master.endpoint)).collect();
            Ok(if names.is_empty() {
                "monitors no master".into()
            } else {
                format!("monitors {}", names.join(", "))
            })
        }),
    };
    report.result(format_args!("{kind} {endpoint}: {}", what.map_err(not_so)?));
    Ok(Ending::Probed)
}

fn is_role(is: &Role, wanted: Option<ProbeRole>) -> Result<String, String> {
    let (word, fits) = match is {
        Role::Master => ("master".to_owned(), wanted != Some(ProbeRole::Replica)),
        Role::Replica { of, .. } => (format!("replica of {of}"), wanted != Some(ProbeRole::Master)),
        Role::Held => ("held: neither master nor replica".to_owned(), wanted.is_none()),
    };
    if fits { Ok(word) } else { Err(word) }
}
