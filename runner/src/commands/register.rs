//! `register` and `deregister`: add a node to the broker when it starts, and remove it when it ends, from a
//! script or by hand.

use broker_fn::api::{Group, Kind, Register, Registration, Roster};

use crate::broker::{Broker, BrokerAt, REQUEST_TIMEOUT};
use crate::cli::{BrokerArgs, DeregisterArgs, RegisterArgs};
use crate::config::resolve_broker;
use crate::error::Failure;
use crate::report::Report;
use crate::report::document::{Ending, RegistrationJson};

/// `register`.
///
/// # Errors
///
/// If the broker can't be reached or refuses.
pub async fn register(typed: RegisterArgs, report: &Report) -> Result<Ending, Failure> {
    let RegisterArgs { kind, at, broker } = typed;
    let (broker, group) = self::broker(broker)?;
    let (host, port) = at.map_or((None, None), |at| (at.host, Some(at.port)));
    let node = Register { host, port, ..Register::default() };
    let registration = broker.register(kind, &node).await.map_err(Failure::Broker)?;
    // At the first registration, both times are the same.
    let known = registration.last_seen != registration.registered_at;
    let what = match known {
        false => "registered".to_owned(),
        true => format!("already registered, since {}", since(&registration)),
    };
    report.result(format_args!("{kind} {}: {what}{group}", registration.addr));
    Ok(Ending::Registered(RegistrationJson {
        kind: kind.into(),
        address: registration.addr.to_string(),
        known,
        registered_at: Some(registration.registered_at.to_string()),
    }))
}

/// `deregister`.
///
/// # Errors
///
/// If the broker can't be reached or refuses.
pub async fn deregister(typed: DeregisterArgs, report: &Report) -> Result<Ending, Failure> {
    let DeregisterArgs { kind, at, broker } = typed;
    let (broker, group) = self::broker(broker)?;
    let roster = broker.roster(REQUEST_TIMEOUT).await.map_err(Failure::Broker)?;
    let known = registrations(&roster, kind).iter().find(|registration| registration.addr == at);
    broker.deregister(kind, &at).await.map_err(Failure::Broker)?;
    let what = match known {
        Some(registration) => format!("deregistered; it had been registered since {}", since(registration)),
        None => "it was not registered".to_owned(),
    };
    report.result(format_args!("{kind} {at}: {what}{group}"));
    Ok(Ending::Deregistered(RegistrationJson {
        kind: kind.into(),
        address: at.to_string(),
        known: known.is_some(),
        registered_at: known.map(|registration| registration.registered_at.to_string()),
    }))
}

/// The registered nodes of this kind.
pub(super) fn registrations(roster: &Roster, kind: Kind) -> &[Registration] {
    match kind {
        Kind::Redis => &roster.redis,
        Kind::Sentinel => &roster.sentinels,
    }
}

/// The broker, and ` (GROUP)` for the message if a group was named.
fn broker(typed: BrokerArgs) -> Result<(Broker, String), Failure> {
    let mut wrong = Vec::new();
    let at = resolve_broker(typed, &mut wrong).filter(|_| wrong.is_empty());
    let at: BrokerAt = at.ok_or(Failure::Usage(wrong))?;
    let group = at.group.as_ref().map(|group: &Group| format!(" ({group})")).unwrap_or_default();
    Ok((Broker::new(&at).map_err(Failure::Other)?, group))
}

/// When the node was registered, to the second.
fn since(registration: &Registration) -> String {
    humantime::format_rfc3339_seconds(registration.registered_at.system_time()).to_string()
}
