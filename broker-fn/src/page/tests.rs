use super::*;
use crate::api::Expected;

/// What a hostile value would be, if any field could hold it: every character that HTML gives a meaning.
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

/// A group that expects 2 Redis servers and 3 Sentinels, and holds these.
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
    roster.outcome = Some(Outcome {
        verified: reason.is_none(),
        master: master.map(|addr| addr.parse().unwrap()),
        at: time("2026-11-22T10:00:38.25Z"),
        reason: reason.map(str::to_owned),
        restore: Default::default(),
        expected: None,
    });
    roster
}

/// Every state that the page can be in, and then some.
fn states() -> Vec<(&'static str, Roster)> {
    let names = |count: usize, name: fn(usize) -> String| (0..count).map(name).collect::<Vec<_>>();
    let mut late = with_outcome(complete(), Some("10.0.0.8:6379"), None);
    late.redis.push(node("10.0.0.9:6379", 39));
    late.redis[0].run_id = None;
    vec![
        ("empty", roster(&[], &[])),
        ("partly", roster(&["10.0.0.7:6379"], &["10.0.0.7:26379"])),
        ("ready", complete()),
        ("verified", with_outcome(complete(), Some("10.0.0.7:6379"), None)),
        ("late", late),
        (
            "failed",
            with_outcome(
                complete(),
                Some("10.0.0.7:6379"),
                Some(
                    "10.0.0.8:6379 does not follow 10.0.0.7:6379: its link has been down for 20 s\n\
                     hint: can it reach 10.0.0.7:6379, and does it have the password?",
                ),
            ),
        ),
        ("gone", with_outcome(roster(&["10.0.0.8:6379"], &["10.0.0.7:26379"]), Some("10.0.0.7:6379"), None)),
        (
            "names",
            roster_of(
                complete().expected,
                &names(2, |n| format!("redis-{n}.redis-headless.production-eu.svc.cluster.local:6379")),
                &names(3, |n| {
                    format!("sentinel-{n}.sentinel-headless.production-eu.svc.cluster.local:26379")
                }),
            ),
        ),
        (
            "many",
            with_outcome(
                roster_of(
                    Expected { redis: 21, sentinels: 9, quorum: 5 },
                    &names(21, |n| format!("10.0.12.{}:6379", 10 + n)),
                    &names(9, |n| format!("10.0.12.{}:26379", 101 + n)),
                ),
                Some("10.0.12.10:6379"),
                None,
            ),
        ),
    ]
}

fn page(roster: &Roster) -> String {
    status(roster, "", now()).0
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
        for tag in ["<script", "<img"] {
            assert!(!page.contains(tag), "{page}");
        }
        assert_eq!(page.matches("</style>").count(), 1);
        assert_eq!(page.matches("</title><style>").count(), 1);
    }
}

#[test]
fn no_other_text_of_a_roster_could_need_escaping() {
    // Hosts, names, ids and times are types that no such text parses as.
    for text in [HOSTILE, "<", ">", "\"", "'", "&"] {
        assert!(text.parse::<crate::api::Group>().is_err());
        assert!(text.parse::<crate::api::RunId>().is_err());
        assert!(text.parse::<crate::api::Host>().is_err());
        assert!(text.parse::<Timestamp>().is_err());
    }
}

#[test]
fn a_page_loads_nothing_and_runs_nothing() {
    for (name, roster) in states() {
        let page = page(&roster);
        for part in ["<script", "<link", "javascript:", " src=", " style=", "@import", "url(", "://"] {
            assert!(!page.contains(part), "{name}: {part}");
        }
    }
}

#[test]
fn a_page_refreshes_itself_until_there_is_nothing_to_wait_for() {
    for (name, roster) in states() {
        let refreshes = page(&roster).contains("<meta http-equiv=\"refresh\" content=\"2\">");
        assert_eq!(refreshes, !["verified", "late", "many"].contains(&name), "{name}");
    }
}

#[test]
fn every_element_of_a_drawing_is_closed() {
    // In SVG an element that is left open swallows what follows it.
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
        let addrs =
            roster.redis.iter().chain(&roster.sentinels).map(|node| format!("<code>{}</code>", node.addr));
        let (_, tables) = page.split_once("<h2>Redis servers</h2>").unwrap();
        let mut rest = tables;
        for addr in addrs {
            rest = rest
                .split_once(&addr)
                .unwrap_or_else(|| panic!("{name}: {addr} is missing or out of order"))
                .1;
        }
    }
    let roles = |roster: &Roster| -> Vec<String> {
        let page = page(roster);
        let cells = page.split("<td class=\"role\">").skip(1);
        cells.map(|cell| cell.split('<').next().unwrap().to_owned()).collect()
    };
    let states: std::collections::BTreeMap<_, _> = states().into_iter().collect();
    assert_eq!(roles(&states["ready"]), ["to be master", "to be replica"]);
    assert_eq!(roles(&states["verified"]), ["master", "replica"]);
    assert_eq!(roles(&states["late"]), ["replica", "master", "new since"]);
    assert!(page(&states["gone"]).contains("master, no longer registered"));
    assert!(page(&states["empty"]).contains("POST /redis"));
    assert!(status(&states["empty"], "/groups/g", now()).0.contains("POST /groups/g/redis"));
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
    says(&complete(), &["Every expected node has registered.", "if none stands already"]);
    let verified = with_outcome(complete(), Some("10.0.0.8:6379"), None);
    says(&verified, &["Verified</strong>, as of", "with master <code>10.0.0.8:6379</code>"]);
    let failed = with_outcome(complete(), Some("10.0.0.8:6379"), Some("a replica is behind"));
    says(&failed, &["the last master was <code>10.0.0.8:6379</code>", "a replica is behind"]);
    // Each replica hangs on the master by a line of its own, and all of the Sentinels by one.
    let drawn = page(&verified);
    let edges = |class: &str| drawn.matches(&format!("<path class=\"{class}\"")).count();
    assert_eq!((edges("edge"), edges("edge watch")), (2, 1), "{drawn}");
}

#[test]
fn the_policy_allows_the_style_sheet_that_the_page_holds() {
    let response = status(&complete(), "", now()).into_response();
    let policy = response.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
    let page = page(&complete());
    let style = page.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
    let digest = BASE64_STANDARD.encode(Sha256::digest(style));
    assert!(policy.contains(&format!("style-src 'sha256-{digest}'")), "{policy}");
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
