//! `status`: shows the broker's roster beside what the servers themselves answer. It prints a tree, lines,
//! metrics, or what a client needs to know to find the master.

mod client;
mod metrics;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::SystemTime;

use broker_fn::api::{Expected, Kind, Roster, Timestamp};
use tokio::time::sleep;

use super::look::{Look, Watcher};
use super::stop::Stop;
use crate::cli::StatusArgs;
use crate::config::LookConfig;
use crate::error::Failure;
use crate::node::endpoint::Endpoint;
use crate::node::redis::{MIN_REPLICAS, RedisState};
use crate::node::replication::{Role, online};
use crate::node::sentinel::SentinelState;
use crate::outcome::exit_code;
use crate::report::document::Ending;
use crate::report::style::{Style, Tone};
use crate::report::{Output, Report};
use crate::system::members::Member;
use crate::system::observe::ObservedNode;
use crate::words::count;

/// `status`.
///
/// # Errors
///
/// If the system is not verified, with the reasons.
pub async fn status(typed: StatusArgs, report: &Report) -> Result<Ending, Failure> {
    let StatusArgs { look, watch, interval } = typed;
    let config = LookConfig::resolve(look, &[("--interval", interval)])?;
    let watcher = Watcher::new(&config, report)?;
    let (mut last, mut on_terminal) = (None, false);
    let stopped = Stop::new()?
        .or(async {
            let mut printed = BTreeMap::new();
            loop {
                let look = watcher.look().await;
                if !watch {
                    last = Some(look);
                    return Ok(());
                }
                on_terminal = report.show(|style| shown(&look, style));
                if !on_terminal {
                    let now = lines(&look);
                    for change in changes(&printed, &now) {
                        let at = humantime::format_rfc3339_seconds(SystemTime::now());
                        report.print(format_args!("{at}  {change}"));
                    }
                    printed = now;
                }
                last = Some(look);
                sleep(interval).await;
            }
        })
        .await;
    // A watch that is stopped prints its last look.
    let Some(look) = last else {
        return Err(stopped.err().unwrap_or(Failure::Stopped(exit_code::INTERRUPTED)));
    };
    let look = look?;
    // Off a terminal, a watch has already printed everything line by line.
    if !watch || on_terminal {
        report.result(match report.output() {
            Output::Text | Output::Json => tree(&look, report.result_style()),
            Output::Prometheus => metrics::of_look(&look, SystemTime::now()).trim_end().to_owned(),
            Output::Env => client::variables(&look.roster),
            Output::Uri => client::uri(&look.roster, config.nodes.sentinels.tls.is_some()),
        });
    }
    look.verdict.map(|system| {
        report.record_system(&system);
        Ending::Verified
    })
}

/// What a terminal shows of a look, or of the failure to get a roster.
fn shown(look: &Result<Look, Failure>, style: Style) -> String {
    match look {
        Ok(look) => tree(look, style),
        Err(failure) => style.wrap(&failure.to_string(), 0, 2).join("\n"),
    }
}

/// One node in the tree, and the nodes below it.
struct Branch {
    address: String,
    what: String,
    tone: Tone,
    /// Details that change all the time. Only the tree contains them.
    aside: String,
    problem: Option<String>,
    below: Vec<Branch>,
}

/// The look as a tree: which server replicates which, and which master each Sentinel reports. No I/O.
#[must_use]
pub fn tree(look: &Look, style: Style) -> String {
    let mut text = style.paint(Tone::Strong, look.roster.group.as_str());
    let (verdict, tone) = match &look.verdict {
        Ok(_) => ("verified", Tone::Good),
        Err(_) => ("not verified", Tone::Bad),
    };
    let _ = writeln!(text, "  {}", style.paint(tone, verdict));
    let Expected { redis, sentinels, quorum } = look.expected;
    let nodes = look.roster.redis.iter().chain(&look.roster.sentinels);
    let stale = match nodes.filter(|node| node.stale).count() {
        0 => String::new(),
        // The `join` of these nodes has not registered them again.
        stale => format!(" ({stale} of them stale)"),
    };
    let registered = format!(
        "broker: {} of {} and {} of {} registered{stale}; quorum {quorum}",
        look.roster.redis.len(),
        count(redis, "Redis server"),
        look.roster.sentinels.len(),
        count(sentinels, "Sentinel")
    );
    for line in
        [Some(registered), Some(outcome(&look.roster)), cost_of_the_quorum(look), cost_of_a_partition(look)]
            .into_iter()
            .flatten()
    {
        for line in style.wrap(&line, 0, 2) {
            let _ = writeln!(text, "{}", style.paint(Tone::Faint, &line));
        }
    }
    for (name, branches) in [("redis", redis_branches(look)), ("sentinels", sentinel_branches(look))] {
        let _ = writeln!(text, "{name}");
        draw(&branches, "", style, &mut text);
    }
    text.trim_end().to_owned()
}

/// The effect of a quorum above the majority. Such a quorum can remain when Sentinels have left.
fn cost_of_the_quorum(look: &Look) -> Option<String> {
    let all = look.verdict.as_ref().ok()?.sentinels.len();
    let masters = look.observed.sentinels.iter();
    let masters = masters.filter_map(|node| Some(&node.state.as_ref().ok()?.monitored.as_ref()?.master));
    let (quorum, group) = masters.map(|master| (master.quorum(), master.field("name"))).max()?;
    let majority = all / 2 + 1;
    (quorum > majority as u64).then(|| {
        format!(
            "the quorum is {quorum} of {all} Sentinels: no failover while fewer than {quorum} of them are up; \
             SENTINEL SET {group} quorum {majority} on each Sentinel makes a majority enough"
        )
    })
}

/// The writes that a partition of the network can cost, if no setting prevents that.
fn cost_of_a_partition(look: &Look) -> Option<String> {
    let system = look.verdict.as_ref().ok()?;
    let without = |member: &&Member| member.settings.number(MIN_REPLICAS) == Some(0);
    let without: Vec<_> = system.redis().filter(without).map(|member| member.endpoint.to_string()).collect();
    if without.is_empty() {
        return None;
    }
    let all = 1 + system.replicas.len();
    let on = if without.len() == all { "every Redis server".to_owned() } else { without.join(", ") };
    let how = if system.replicas.len() > 1 {
        format!(
            "`sentinel-runner bootstrap --redis-set {MIN_REPLICAS}=1` limits that, but then no client can \
             write while all replicas are down"
        )
    } else {
        "to limit that, add replicas: at least two are needed".to_owned()
    };
    Some(format!(
        "{MIN_REPLICAS} is 0 on {on}: a master that is cut off goes on taking writes, which are lost; {how}"
    ))
}

fn outcome(roster: &Roster) -> String {
    let at = |at: Timestamp| humantime::format_rfc3339_seconds(at.system_time()).to_string();
    match &roster.outcome {
        None => "last run: none".to_owned(),
        Some(outcome) => match (&outcome.master, &outcome.reason) {
            (Some(master), _) if outcome.verified => {
                format!("last run: verified, master {master}, {}", at(outcome.at))
            }
            (_, reason) => {
                let reason = reason.as_ref().and_then(|reason| reason.lines().next());
                let reason = reason.map(|reason| format!("{reason}, ")).unwrap_or_default();
                let last = roster.last_verified.as_ref();
                let last =
                    last.map(|last| format!("; last verified {}, master {}", at(last.at), last.master));
                format!("last run: {reason}{}{}", at(outcome.at), last.unwrap_or_default())
            }
        },
    }
}

fn draw(branches: &[Branch], prefix: &str, style: Style, text: &mut String) {
    for (index, branch) in branches.iter().enumerate() {
        let is_last = index + 1 == branches.len();
        let (arm, trunk) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let below = format!("{prefix}{trunk}");
        let stem = format!("{below}{}", if branch.below.is_empty() { "   " } else { "│  " });
        let Branch { address, what, tone, aside, problem, below: _ } = branch;
        let mut lines = style
            .wrap(&format!("{what}{aside}"), columns(prefix) + 3 + columns(address) + 2, columns(&stem))
            .into_iter();
        let first = lines.next().unwrap_or_default();
        let _ = writeln!(
            text,
            "{}{}  {}",
            style.paint(Tone::Faint, &format!("{prefix}{arm}")),
            style.paint(Tone::Strong, address),
            style.paint(*tone, &first)
        );
        let more = lines.map(|line| (line.trim_start().to_owned(), *tone));
        let problem = problem.iter().flat_map(|problem| {
            let lines = style.wrap(&format!("! {problem}"), columns(&stem), columns(&stem) + 2);
            lines.into_iter().enumerate().map(|(index, line)| {
                let indent = if index == 0 { "" } else { "  " };
                (format!("{indent}{}", line.trim_start()), Tone::Bad)
            })
        });
        for (line, tone) in more.chain(problem) {
            let _ = writeln!(text, "{}{}", style.paint(Tone::Faint, &stem), style.paint(tone, &line));
        }
        draw(&branch.below, &below, style, text);
    }
}

fn columns(text: &str) -> usize {
    text.chars().count()
}

/// The masters, each with its replicas. Then the servers that follow no server in this tree, the servers that
/// can't be used, and the missing ones.
fn redis_branches(look: &Look) -> Vec<Branch> {
    let nodes = &look.observed.redis;
    let state = |node: &ObservedNode<RedisState>| node.state.as_ref().ok().cloned();
    let leader = |node: &ObservedNode<RedisState>| {
        let Role::Replica { of, .. } = state(node)?.role else { return None };
        nodes.iter().position(|other| {
            other.endpoint != node.endpoint
                && state(other).map_or(other.endpoint == of, |state| state.is_at(&of))
        })
    };
    let leaders: Vec<Option<usize>> = nodes.iter().map(leader).collect();
    // Two servers that replicate each other are at the top as well: a circle has no beginning.
    let is_root = |index: usize| {
        let mut at = index;
        for _ in 0..nodes.len() {
            match leaders[at] {
                Some(next) if next != index => at = next,
                Some(_) => return true,
                None => return at == index,
            }
        }
        false
    };
    let mut shown = vec![false; nodes.len()];
    let mut branches = Vec::new();
    for index in 0..nodes.len() {
        if is_root(index) && !shown[index] {
            branches.push(redis_branch(look, index, &leaders, &mut shown));
        }
    }
    // The servers that follow a circle, and were not reached from it.
    for index in 0..nodes.len() {
        if !shown[index] {
            branches.push(redis_branch(look, index, &leaders, &mut shown));
        }
    }
    branches.extend(missing(look.expected.redis, nodes.len()));
    branches
}

fn redis_branch(look: &Look, index: usize, leaders: &[Option<usize>], shown: &mut [bool]) -> Branch {
    shown[index] = true;
    let node = &look.observed.redis[index];
    let below: Vec<usize> =
        (0..leaders.len()).filter(|&other| leaders[other] == Some(index) && !shown[other]).collect();
    let below = below.into_iter().map(|other| redis_branch(look, other, leaders, shown)).collect();
    let (what, tone) = match &node.state {
        Ok(state) => redis_text(state),
        Err(problem) => (problem.to_string(), if problem.may_pass() { Tone::Warn } else { Tone::Bad }),
    };
    let aside = node.state.as_ref().map(|state| format!(", {}", state.data)).unwrap_or_default();
    Branch {
        address: node.endpoint.to_string(),
        what,
        tone,
        aside,
        problem: problem(look, &node.endpoint),
        below,
    }
}

fn redis_text(state: &RedisState) -> (String, Tone) {
    match &state.role {
        Role::Master if state.replicas.is_empty() => ("master, no replicas".to_owned(), Tone::Plain),
        Role::Master => {
            let (online, all) = (online(&state.replicas), state.replicas.len());
            let tone = if online == all { Tone::Good } else { Tone::Warn };
            (format!("master, {online} of {} online", count(all, "replica")), tone)
        }
        Role::Held => ("held: takes no writes until its role is known".to_owned(), Tone::Warn),
        Role::Replica { link_up: true, .. } => ("replica, link up".to_owned(), Tone::Good),
        Role::Replica { of, .. } => (format!("replica of {of}, link down"), Tone::Warn),
    }
}

fn sentinel_branches(look: &Look) -> Vec<Branch> {
    let branch = |node: &ObservedNode<SentinelState>| {
        let (what, tone) = match &node.state {
            Ok(state) => sentinel_text(state),
            Err(problem) => (problem.to_string(), if problem.may_pass() { Tone::Warn } else { Tone::Bad }),
        };
        // A Sentinel that monitors nothing reports no wrong master.
        let monitors = node.state.as_ref().is_ok_and(|state| state.monitored.is_some());
        let problem = problem(look, &node.endpoint).filter(|_| monitors);
        Branch {
            address: node.endpoint.to_string(),
            what,
            tone,
            aside: String::new(),
            problem,
            below: Vec::new(),
        }
    };
    let nodes = &look.observed.sentinels;
    nodes.iter().map(branch).chain(missing(look.expected.sentinels, nodes.len())).collect()
}

fn sentinel_text(state: &SentinelState) -> (String, Tone) {
    let Some(monitored) = &state.monitored else {
        return ("does not monitor the group".to_owned(), Tone::Plain);
    };
    let master = &monitored.master;
    let mut text = format!(
        "reports {}, {}, {}, quorum {}",
        master.endpoint,
        count(master.replicas(), "replica"),
        count(master.other_sentinels(), "other Sentinel"),
        master.quorum()
    );
    if master.config_epoch() > 0 {
        let _ = write!(text, ", epoch {}", master.config_epoch());
    }
    if master.flags() == "master" {
        return (text, Tone::Good);
    }
    let _ = write!(text, ", flags {}", master.flags());
    (text, Tone::Warn)
}

fn missing(expected: u16, there: usize) -> impl Iterator<Item = Branch> {
    (there..expected.into()).map(|_| Branch {
        address: "-".to_owned(),
        what: "not registered".to_owned(),
        tone: Tone::Faint,
        aside: String::new(),
        problem: None,
        below: Vec::new(),
    })
}

fn problem(look: &Look, endpoint: &Endpoint) -> Option<String> {
    look.unmet.iter().find(|unmet| unmet.node == *endpoint).map(|unmet| unmet.what.clone())
}

/// The look as lines, one for each node, for output that is read line by line. The key is the node. No I/O.
fn lines(look: &Result<Look, Failure>) -> BTreeMap<String, String> {
    let look = match look {
        Ok(look) => look,
        Err(failure) => return BTreeMap::from([("broker".to_owned(), failure.to_string())]),
    };
    let mut lines = BTreeMap::new();
    let add = |kind: Kind, branch: Branch, lines: &mut BTreeMap<String, String>| {
        let problem = branch.problem.map(|problem| format!(" ! {problem}")).unwrap_or_default();
        lines.insert(format!("{kind} {}", branch.address), format!("{}{problem}", branch.what));
    };
    let mut queue: Vec<Branch> = redis_branches(look);
    while let Some(mut branch) = queue.pop() {
        queue.append(&mut branch.below);
        if branch.address != "-" {
            add(Kind::Redis, branch, &mut lines);
        }
    }
    for branch in sentinel_branches(look).into_iter().filter(|branch| branch.address != "-") {
        add(Kind::Sentinel, branch, &mut lines);
    }
    let verdict = match &look.verdict {
        Ok(system) => format!("verified, master {}", system.master.endpoint),
        Err(failure) => failure.to_string(),
    };
    lines.insert(format!("group {}", look.roster.group), verdict);
    lines
}

/// What is new, different or gone.
fn changes(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<String> {
    let new = now.iter().filter(|(node, what)| before.get(*node) != Some(what));
    let gone = before.keys().filter(|node| !now.contains_key(*node));
    new.map(|(node, what)| format!("{node}: {what}"))
        .chain(gone.map(|node| format!("{node}: gone")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_said() {
        let map = |lines: &[(&str, &str)]| {
            lines
                .iter()
                .map(|(node, what)| ((*node).to_owned(), (*what).to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        let before = map(&[("a", "1"), ("b", "1"), ("c", "1")]);
        let now = map(&[("a", "1"), ("b", "2"), ("d", "1")]);
        assert_eq!(changes(&before, &now), ["b: 2", "d: 1", "c: gone"]);
        assert!(changes(&now, &now).is_empty());
    }
}
