use super::changes::{Change, changes};
use super::*;
use crate::api::{Addr, Expected, GroupSummary, Groups, LastVerified, Outcome, Registration, Roster, Ttl};

/// A hostile value with every character that has a meaning in HTML, as if a field could contain it.
const HOSTILE: &str = "</title></style><script>alert(1)</script><img src=x onerror='alert(\"2\")'>&amp;";

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn now() -> Timestamp {
    time("2026-11-22T10:00:40Z")
}

fn node(addr: &str, second: usize) -> Registration {
    let registered_at = time(&format!("2026-11-22T10:00:{second:02}.123456789Z"));
    Registration {
        run_id: Some("0123456789abcdef0123456789abcdef01234567".parse().unwrap()),
        last_seen: time("2026-11-22T10:00:39.5Z"),
        ..Registration::new(addr.parse().unwrap(), registered_at)
    }
}

/// A group that expects 2 Redis servers and 3 Sentinels, and holds these nodes.
fn roster(redis: &[&str], sentinels: &[&str]) -> Roster {
    roster_of(Expected { redis: 2, sentinels: 3, quorum: 2 }, redis, sentinels)
}

fn roster_of(expected: Expected, redis: &[impl AsRef<str>], sentinels: &[impl AsRef<str>]) -> Roster {
    let missing = expected.missing(redis.len(), sentinels.len());
    Roster {
        group: "mymaster".parse().unwrap(),
        ready: missing.is_nothing(),
        expected,
        missing,
        redis: nodes(redis, 0),
        sentinels: nodes(sentinels, redis.len()),
        outcome: None,
        last_verified: None,
    }
}

fn nodes(addrs: &[impl AsRef<str>], first: usize) -> Vec<Registration> {
    addrs.iter().enumerate().map(|(index, addr)| node(addr.as_ref(), first + index)).collect()
}

fn complete() -> Roster {
    roster(&["10.0.0.7:6379", "10.0.0.8:6379"], &["10.0.0.7:26379", "10.0.0.8:26379", "[fd00::9]:26379"])
}

fn with_outcome(mut roster: Roster, master: Option<&str>, reason: Option<&str>) -> Roster {
    let master: Option<Addr> = master.map(|addr| addr.parse().unwrap());
    let at = time("2026-11-22T10:00:38.25Z");
    let addrs = |nodes: &[Registration]| nodes.iter().map(|node| node.addr.clone()).collect();
    roster.last_verified = master.clone().filter(|_| reason.is_none()).map(|master| LastVerified {
        at,
        master,
        redis: addrs(&roster.redis),
        sentinels: addrs(&roster.sentinels),
        expected: roster.expected,
    });
    roster.outcome = Some(Outcome {
        verified: reason.is_none(),
        master,
        at,
        reason: reason.map(str::to_owned),
        restore: Default::default(),
        expected: None,
    });
    roster
}

fn verified() -> Roster {
    with_outcome(complete(), Some("10.0.0.7:6379"), None)
}

/// Sets what a member reports with each heartbeat.
fn says_master(node: &mut Registration, master: &str) {
    node.ttl = Some(Ttl::try_from(180).unwrap());
    node.master = Some(master.parse().unwrap());
}

/// Every state of the page, and variants of some states.
fn states() -> Vec<(&'static str, Roster)> {
    let names = |count: usize, name: fn(usize) -> String| (0..count).map(name).collect::<Vec<_>>();
    let mut joined = verified();
    joined.redis.push(node("10.0.0.9:6379", 39));
    joined.redis[0].run_id = None;
    let mut failed_over = verified();
    failed_over.redis.iter_mut().chain(&mut failed_over.sentinels).for_each(|node| {
        says_master(node, "10.0.0.8:6379");
    });
    failed_over.redis[0].stale = true;
    failed_over.redis[0].last_seen = time("2026-11-22T09:56:40Z");
    let mut gone = verified();
    gone.sentinels.truncate(1);
    gone.missing = gone.expected.missing(2, 1);
    gone.ready = false;
    let failed = |roster| {
        with_outcome(
            roster,
            Some("10.0.0.7:6379"),
            Some(
                "not verified after 30s; changes of this run are not undone\n10.0.0.8:6379: does not follow 10.0.0.7:6379: its link has been down for 20 s\n\
                 hint: can it reach 10.0.0.7:6379, and does it have the password? `redis-cli -h 10.0.0.8 INFO replication`",
            ),
        )
    };
    let mut failed_after = failed(complete());
    failed_after.last_verified = verified().last_verified;
    vec![
        ("empty", roster(&[], &[])),
        ("partly", roster(&["10.0.0.7:6379"], &["10.0.0.7:26379"])),
        ("ready", complete()),
        ("verified", verified()),
        ("joined", joined),
        ("failed-over", failed_over),
        ("gone", gone),
        ("failed", failed(complete())),
        ("failed-after", failed_after),
        (
            "names",
            with_outcome(
                roster_of(
                    complete().expected,
                    &names(2, |n| format!("redis-{n}.redis-headless.production-eu.svc.cluster.local:6379")),
                    &names(3, |n| {
                        format!("sentinel-{n}.sentinel-headless.production-eu.svc.cluster.local:26379")
                    }),
                ),
                Some("redis-0.redis-headless.production-eu.svc.cluster.local:6379"),
                None,
            ),
        ),
        (
            "many",
            with_outcome(
                roster_of(
                    Expected { redis: 11, sentinels: 9, quorum: 5 },
                    &names(11, |n| format!("10.0.12.{}:6379", 10 + n)),
                    &names(9, |n| format!("10.0.12.{}:26379", 101 + n)),
                ),
                Some("10.0.12.10:6379"),
                None,
            ),
        ),
    ]
}

fn place() -> CommandTarget {
    CommandTarget { url: Some("http://broker:3000".into()), group: None, asks_token: false }
}

fn page(roster: &Roster) -> String {
    status(roster, &place(), now()).0
}

#[test]
#[ignore = "writes every state of the page into the folder that `PAGES` names, for people to look at"]
fn pages_to_look_at() {
    let folder = std::path::PathBuf::from(std::env::var_os("PAGES").expect("`PAGES` names a folder"));
    for (name, roster) in states() {
        std::fs::write(folder.join(format!("{name}.html")), page(&roster)).unwrap();
    }
    let problem = problem(&Error::Unauthorized { reads: true });
    std::fs::write(folder.join("sign-in.html"), problem.0).unwrap();
}

#[test]
fn whatever_a_reason_or_an_error_holds_is_text() {
    for page in [
        page(&with_outcome(complete(), None, Some(HOSTILE))),
        problem(&Error::Invalid(HOSTILE.into())).0,
        problem(&Error::NotFound(HOSTILE.into())).0,
    ] {
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x"), "{page}");
        assert!(page.contains("&amp;amp;"), "{page}");
        assert!(!page.contains("<img") && !page.contains("<script>alert"), "{page}");
        assert_eq!(page.matches("</style>").count(), 1);
        assert_eq!(page.matches("</title><style>").count(), 1);
    }
}

#[test]
fn no_other_text_of_a_roster_could_need_escaping() {
    // Hosts, names, ids and times are of types that refuse such a text.
    for text in [HOSTILE, "<", ">", "\"", "'", "&"] {
        assert!(text.parse::<Group>().is_err());
        assert!(text.parse::<crate::api::RunId>().is_err());
        assert!(text.parse::<crate::api::Host>().is_err());
        assert!(text.parse::<Timestamp>().is_err());
    }
}

#[test]
fn a_page_loads_nothing_and_runs_nothing_but_its_own_script() {
    for (name, roster) in states() {
        let page = page(&roster);
        for part in ["<link", "javascript:", " src=", " style=", "@import", "url("] {
            assert!(!page.contains(part), "{name}: {part}");
        }
        // The page's own script, which the policy names by its digest.
        assert_eq!(page.matches("<script").count(), 1, "{name}");
        assert!(page.contains(&format!("<script>{SCRIPT}</script>")), "{name}");
        assert_eq!(page.matches("://").count(), page.matches("http://broker:3000").count(), "{name}");
    }
}

#[test]
fn a_page_loads_itself_anew_without_its_script_too() {
    for (name, roster) in states() {
        let seconds = if ["verified", "names", "many"].contains(&name) { 60 } else { 10 };
        let meta = format!("<noscript><meta http-equiv=\"refresh\" content=\"{seconds}\"></noscript>");
        assert!(page(&roster).contains(&meta), "{name}");
    }
}

#[test]
fn every_element_of_a_drawing_is_closed() {
    // In SVG, an element that is left open swallows the elements after it.
    for (name, roster) in states() {
        let page = page(&roster);
        for tag in ["svg", "rect", "path", "text", "title"] {
            let opened =
                page.matches(&format!("<{tag} ")).count() + page.matches(&format!("<{tag}>")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{name}: {tag}");
        }
    }
}

#[test]
fn a_page_names_every_node_in_order_and_who_is_or_becomes_master() {
    for (name, roster) in states() {
        let page = page(&roster);
        for (heading, nodes) in [("<h2>Redis servers", &roster.redis), ("<h2>Sentinels", &roster.sentinels)] {
            let (_, list) = page.split_once(heading).unwrap();
            let (list, _) = list.split_once("</section>").unwrap();
            let rows: Vec<&str> = list.split("<td class=\"addr\">").skip(1).collect();
            assert_eq!(rows.len(), nodes.len(), "{name}");
            for node in nodes {
                let title = format!("title=\"{}\"", node.addr);
                assert_eq!(rows.iter().filter(|row| row.contains(&title)).count(), 1, "{name}: {title}");
            }
        }
    }
    let roles = |roster: &Roster| -> Vec<String> {
        let page = page(roster);
        let pills = page.split("<span class=\"pill").skip(1).map(|pill| pill.split_once('>').unwrap().1);
        pills.map(|pill| pill.split('<').next().unwrap().to_owned()).collect()
    };
    let states: std::collections::BTreeMap<_, _> = states().into_iter().collect();
    assert_eq!(roles(&states["ready"]), ["planned master", "planned replica"]);
    assert_eq!(roles(&states["verified"]), ["master", "replica"]);
    // The master comes first, then its replicas.
    assert_eq!(roles(&states["joined"]), ["master", "replica", "new"]);
    assert_eq!(roles(&states["failed-over"]), ["master", "stale"]);
    assert_eq!(roles(&states["failed"]), ["planned master", "planned replica"]);
    assert_eq!(roles(&states["failed-after"]), ["master", "replica"]);
}

#[test]
fn an_empty_group_says_how_nodes_come_into_it() {
    let none = roster(&[], &[]);
    let says = |place: &CommandTarget, texts: &[&str]| {
        let page = status(&none, place, now()).0;
        for text in texts {
            assert!(page.contains(text), "does not say {text:?}: {page}");
        }
    };
    says(
        &place(),
        &[
            "sentinel-runner join redis --broker http://broker:3000 -- redis-server",
            "curl -X POST http://broker:3000/redis",
            "sentinel-runner bootstrap --broker http://broker:3000<",
        ],
    );
    let other = CommandTarget { group: Some("g".parse().unwrap()), asks_token: true, ..place() };
    says(
        &other,
        &[
            "--broker http://broker:3000 --group g --token-file TOKEN-FILE",
            "curl -X POST -H &quot;Authorization: Bearer $TOKEN&quot; http://broker:3000/groups/g/redis",
        ],
    );
    says(&CommandTarget::default(), &["--broker http://BROKER:3000"]);
}

#[test]
fn what_differs_from_what_was_verified_is_named() {
    let addr = |text: &str| text.parse::<Addr>().unwrap();
    let is = |change: &dyn Fn(&mut Roster), expected: &[Change]| {
        let mut roster = verified();
        change(&mut roster);
        assert_eq!(changes(&roster), expected);
        let page = page(&roster);
        assert_eq!(page.contains("Changed</strong>"), !expected.is_empty(), "{page}");
        assert_eq!(page.contains("Verified</strong>"), expected.is_empty(), "{page}");
    };
    is(&|_| {}, &[]);
    let (eight, nine) = (addr("10.0.0.8:6379"), addr("10.0.0.9:6379"));
    is(&|roster| roster.redis.push(node("10.0.0.9:6379", 39)), &[Change::Joined(Kind::Redis, nine)]);
    is(&|roster| roster.redis[1].stale = true, &[Change::Stale(Kind::Redis, eight.clone())]);
    is(&|roster| drop(roster.redis.pop()), &[Change::Left(Kind::Redis, eight.clone())]);
    is(&|roster| drop(roster.sentinels.remove(0)), &[Change::Left(Kind::Sentinel, addr("10.0.0.7:26379"))]);
    // A node that joined and became stale was never a member.
    is(&|roster| roster.redis.push(Registration { stale: true, ..node("10.0.0.9:6379", 39) }), &[]);
    // The page shows a failover as soon as most members that report a master report the new master. The
    // Sentinels' reports take precedence.
    is(&|roster| says_master(&mut roster.redis[1], "10.0.0.8:6379"), &[Change::Master(eight.clone())]);
    is(&|roster| says_master(&mut roster.redis[1], "10.0.0.7:6379"), &[]);
    is(&|roster| says_master(&mut roster.redis[1], "redis-2.example:6379"), &[]);
    let both_say = |roster: &mut Roster| {
        says_master(&mut roster.redis[0], "10.0.0.7:6379");
        says_master(&mut roster.redis[1], "10.0.0.8:6379");
    };
    is(&both_say, &[]);
    is(
        &|roster| {
            both_say(roster);
            says_master(&mut roster.sentinels[0], "10.0.0.7:6379");
            says_master(&mut roster.sentinels[1], "10.0.0.8:6379");
            says_master(&mut roster.sentinels[2], "10.0.0.8:6379");
        },
        &[Change::Master(eight.clone())],
    );
    // What a node reported before the run is not used.
    is(
        &|roster| {
            says_master(&mut roster.redis[1], "10.0.0.8:6379");
            roster.redis[1].last_seen = time("2026-11-22T10:00:30Z");
        },
        &[],
    );
    // The broker expects more nodes now, and the run did not set its own number.
    is(&|roster| roster.ready = false, &[Change::Fewer]);
    is(
        &|roster| {
            roster.ready = false;
            roster.outcome.as_mut().unwrap().expected = Some(roster.expected);
        },
        &[],
    );
    // The members at that time are unknown.
    is(&|roster| roster.last_verified = None, &[Change::Unknown]);
    assert_eq!(changes(&with_outcome(complete(), None, Some("why"))), []);
}

#[test]
fn what_members_say_stands_also_where_no_run_is_known() {
    let mut roster = complete();
    for node in roster.redis.iter_mut().chain(&mut roster.sentinels) {
        says_master(node, "10.0.0.8:6379");
    }
    let said = page(&roster);
    for text in [
        "Ready</strong>",
        "master <code>10.0.0.8:6379</code>",
        "Was the broker's store lost?",
        "The system as its nodes report it.",
    ] {
        assert!(said.contains(text), "does not say {text:?}: {said}");
    }
    assert!(!said.contains("planned master"), "{said}");
    // A stale server is not the planned master.
    let mut roster = complete();
    roster.redis[0].stale = true;
    let said = page(&roster);
    let second = "10.0.0.8:6379</code> <span class=\"pill planned\">planned master";
    assert!(said.contains("stale</span>") && said.contains(second), "{said}");
}

#[test]
fn a_run_that_has_begun_is_no_failure() {
    let page = page(&with_outcome(complete(), None, Some(crate::api::RUN_UNDER_WAY)));
    assert!(page.contains("A run is under way</strong>") && !page.contains("Not verified"), "{page}");
    assert!(!page.contains("sentinel-runner bootstrap"), "nobody is to start a second one: {page}");
    // A run that was killed.
    let mut killed = with_outcome(complete(), None, Some(crate::api::RUN_UNDER_WAY));
    killed.outcome.as_mut().unwrap().at = time("2026-11-22T09:45:00Z");
    let page = self::page(&killed);
    assert!(page.contains("Not verified</strong>") && page.contains("it was killed"), "{page}");
    assert!(page.contains("sentinel-runner bootstrap"), "{page}");
    // Changes are shown beside a failure too.
    let (_, mut failed) = states().into_iter().find(|(name, _)| *name == "failed-after").unwrap();
    failed.redis[1].stale = true;
    assert!(self::page(&failed).contains("10.0.0.8:6379</code> has not registered again"));
}

#[test]
fn a_silent_node_is_marked_if_it_should_have_registered() {
    let mut roster = complete();
    let marked = |roster: &Roster| page(roster).matches("<span class=\"lacking\"><time").count();
    roster.redis[0].last_seen = time("2026-11-22T09:57:39Z");
    assert_eq!(marked(&roster), 0, "it never said that it would register again");
    says_master(&mut roster.redis[0], "10.0.0.7:6379");
    assert_eq!(marked(&roster), 1);
    roster.redis[0].last_seen = time("2026-11-22T09:57:41Z");
    assert_eq!(marked(&roster), 0);
}

#[test]
fn how_long_ago_is_said_in_the_unit_that_suits() {
    for (seconds, expected) in [
        (0, "just now"),
        (1, "1 s ago"),
        (119, "119 s ago"),
        (120, "2 min ago"),
        (7199, "119 min ago"),
        (7200, "2 h ago"),
        (172_800, "2 days ago"),
    ] {
        assert_eq!(words(seconds), expected);
    }
}

#[test]
fn the_end_that_all_names_have_is_said_once() {
    let page = page(&states().into_iter().find(|(name, _)| *name == "names").unwrap().1);
    assert!(page.contains(">redis-1</code>") && page.contains(">sentinel-2</code>"), "{page}");
    let suffix = "<code>*.redis-headless.production-eu.svc.cluster.local:6379</code>";
    assert_eq!(page.matches(suffix).count(), 1, "{page}");
    let of = |addrs: &[&str]| status::common_suffix(&nodes(addrs, 0));
    assert_eq!(of(&["10.100.100.1:26379", "10.100.100.2:26379"]), None, "addresses have no names");
    assert_eq!(of(&["a.example.com:6379"]), None);
    assert_eq!(of(&["a.example.com:1", "b.example.com:1"]), None, "short");
    assert_eq!(of(&["a.example.com:6379", "b.example.com:6379"]).as_deref(), Some(".example.com:6379"));
    assert_eq!(of(&["a.example.com:6379", "b.example.com:6380"]), None);
}

#[test]
fn groups_are_listed_with_a_way_to_each() {
    let summary = |group: &str, ready, stale| GroupSummary {
        group: group.parse().unwrap(),
        redis: 2,
        sentinels: 3,
        stale,
        ready,
    };
    let list = vec![summary("cache", true, 0), summary("mymaster", false, 1)];
    let page = groups(&Groups { groups: list, next: Some("/groups?after=mymaster".into()) }, now()).0;
    for text in [
        "<a href=\"/groups/cache\">cache</a> <span class=\"pill good\">complete</span>",
        "waiting for nodes</span> <span class=\"pill warn\">1 stale</span>",
        "<a href=\"/groups?after=mymaster\">More groups</a>",
    ] {
        assert!(page.contains(text), "does not say {text:?}: {page}");
    }
    assert!(groups(&Groups { groups: vec![], next: None }, now()).0.contains("No node has registered"));
}

#[test]
fn what_is_missing_and_what_came_of_it_are_said() {
    let says = |roster: &Roster, texts: &[&str]| {
        let page = page(roster);
        for text in texts {
            assert!(page.contains(text), "does not say {text:?}: {page}");
        }
    };
    let missing = [
        "1 Redis server and 3 Sentinels still to register.",
        ">1 Redis server missing<",
        ">3 Sentinels missing<",
    ];
    says(&roster(&["10.0.0.7:6379"], &[]), &missing);
    let watching = roster(&["10.0.0.7:6379", "10.0.0.8:6379"], &["10.0.0.7:26379"]);
    says(&watching, &["2 Sentinels still to register.", "1</span> of 3"]);
    says(
        &complete(),
        &["Every expected node has registered.", "A master that exists already stays the master."],
    );
    let verified = with_outcome(complete(), Some("10.0.0.8:6379"), None);
    says(
        &verified,
        &[
            "Verified</strong>",
            "title=\"2026-11-22T10:00:38.250000000Z\">1 s ago",
            "master <code>10.0.0.8:6379</code>",
        ],
    );
    let failed = &states().into_iter().find(|(name, _)| *name == "failed-after").unwrap().1;
    says(
        failed,
        &[
            "<p>not verified after 30s; changes of this run are not undone</p>",
            "<li>10.0.0.8:6379: does not follow",
            "<code>redis-cli -h 10.0.0.8 INFO replication</code>",
            "Last verified <time",
            "sentinel-runner bootstrap --broker http://broker:3000",
        ],
    );
    // Each replica has its own line to the master, and the Sentinels share one.
    let drawn = page(&verified);
    let edges = |class: &str| drawn.matches(&format!("<path class=\"{class}\"")).count();
    assert_eq!((edges("edge"), edges("edge watch")), (2, 1), "{drawn}");
}

#[test]
fn the_policy_allows_the_style_sheet_and_the_script_that_the_page_holds() {
    let response = status(&complete(), &place(), now()).into_response();
    let policy = response.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
    let page = page(&complete());
    for tag in ["style", "script"] {
        let (_, text) = page.split_once(&format!("<{tag}>")).unwrap();
        let (text, _) = text.split_once(&format!("</{tag}>")).unwrap();
        let digest = BASE64_STANDARD.encode(Sha256::digest(text));
        assert!(policy.contains(&format!("{tag}-src 'sha256-{digest}'")), "{policy}");
    }
}

#[test]
fn a_long_name_is_shortened_in_its_middle() {
    assert_eq!(shortened("short", 5), "short");
    assert_eq!(shortened("0123456789", 5), "01…89");
    assert_eq!(shortened("0123456789", 4), "01…9");
    assert_eq!(shortened("éééééé", 3), "é…é");
}

#[test]
fn expectations_that_are_absurd_are_drawn_all_the_same() {
    let expected = Expected { redis: u16::MAX, sentinels: u16::MAX, quorum: u16::MAX };
    let none: [&str; 0] = [];
    let absurd = page(&roster_of(expected, &none, &none));
    assert!(absurd.len() < 20_000 && absurd.contains("65535 Sentinels missing"), "{absurd}");
    let nothing = page(&roster_of(Expected { redis: 0, sentinels: 0, quorum: 0 }, &none, &none));
    assert!(nothing.contains("0</span> of 0"), "{nothing}");
}
