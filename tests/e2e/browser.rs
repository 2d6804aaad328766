//! The status page in a real browser: on a desktop and on a phone, light and dark.
//!
//! With `SCREENSHOTS=folder`, the tests keep screenshots in that folder for people to look at.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::{Broker, Browser, Lab, Request, Scheme, scenario};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const DESKTOP: u32 = 1280;
const PHONE: u32 = 375;
/// Longer than a page that refreshes itself takes to notice a change.
const LIMIT: Duration = Duration::from_secs(30);
/// The contrast that WCAG 2.2 requires for text (1.4.3, level AA).
const CONTRAST: f64 = 4.5;

/// Every element that extends beyond the left or the right edge.
const OVERFLOWING: &str = r"
    const width = document.documentElement.clientWidth;
    const wide = [...document.querySelectorAll('body *')].filter(element => {
        const box = element.getBoundingClientRect();
        return box.width > 0 && (box.right > width + 0.5 || box.left < -0.5);
    }).map(element => `${element.tagName} ${element.getAttribute('class')}: ${element.textContent.slice(0, 40)}`);
    if (document.documentElement.scrollWidth > width) wide.push(`the page is ${document.documentElement.scrollWidth} wide`);
    return wide;
";

/// Every text, with the contrast between its colour and its background.
const CONTRASTS: &str = r"
    const parts = color => color.match(/[\d.]+/g).map(Number);
    const isSeen = color => color.startsWith('rgb') && (parts(color)[3] ?? 1) === 1;
    const luminance = color => {
        const [r, g, b] = parts(color).map(part => part / 255)
            .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = getComputedStyle(document.body).backgroundColor;
    const behind = element => {
        if (element.ownerSVGElement) {
            const box = element.getBoundingClientRect(), x = box.left + box.width / 2, y = box.top + box.height / 2;
            // The background that is drawn last covers the others.
            const filled = [...element.ownerSVGElement.querySelectorAll('rect')].filter(rect => {
                const around = rect.getBoundingClientRect();
                return isSeen(getComputedStyle(rect).fill) && around.left <= x && x <= around.right
                    && around.top <= y && y <= around.bottom;
            });
            return filled.length ? getComputedStyle(filled.at(-1)).fill : ground;
        }
        for (let at = element; at; at = at.parentElement) {
            const color = getComputedStyle(at).backgroundColor;
            if (isSeen(color)) return color;
        }
        return ground;
    };
    const texts = [...document.querySelectorAll('body *')].filter(element =>
        element.tagName !== 'title' && element.getBoundingClientRect().width > 0
        && [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim()));
    return texts.map(element => {
        const style = getComputedStyle(element);
        const [a, b] = [element.ownerSVGElement ? style.fill : style.color, behind(element)].map(luminance);
        return [element.textContent.trim().slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
";

/// The visible addresses in the lists.
const LISTED: &str = r"
    return [...document.querySelectorAll('td.addr code')].filter(addr => addr.offsetWidth > 0).map(addr => addr.title);
";

/// The texts of the drawing that are visible and entirely within the drawing.
const DRAWN: &str = r"
    const svg = document.querySelector('svg.topology');
    if (!svg) return [];
    const frame = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].filter(text => {
        const box = text.getBoundingClientRect();
        return box.width > 0 && box.height > 0 && box.left >= frame.left - 0.5 && box.right <= frame.right + 0.5
            && box.top >= frame.top - 0.5 && box.bottom <= frame.bottom + 0.5;
    }).map(text => [...text.childNodes].filter(node => node.nodeType === Node.TEXT_NODE).map(node => node.data).join(''));
";

const BADGE: &str = "document.querySelector('.badge').textContent";

async fn register(broker: &Broker, path: &str, host: &str) -> Result<()> {
    let body = json!({"host": host, "run_id": "4bc9c4fe0bd58a5a2ae9a7d2cd5d6a4c8e1e7a0f"});
    let reply = broker.post(path).json(&body).send().await?;
    assert_eq!(reply.status, 201, "{reply}");
    Ok(())
}

async fn report(broker: &Broker, outcome: &Value) -> Result<()> {
    let reply = broker.put("/outcome").json(outcome).send().await?;
    assert_eq!(reply.status, 204, "{reply}");
    Ok(())
}

/// Opens a copy of the page as it is now. The copy does not refresh itself while it is looked at.
async fn open_still(lab: &Lab, browser: &Browser, page: Request) -> Result<()> {
    let reply = page.header("accept", "text/html").send().await?;
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"), "{reply}");
    let file = lab.dir().join("page.html");
    // Removes the script.
    let text = reply.text();
    let (head, rest) = text.split_once("<noscript>").unwrap_or((&text, "</script>"));
    let (_, body) = rest.split_once("</script>").context("what it refreshes itself with")?;
    std::fs::write(&file, format!("{head}{body}"))?;
    browser.open(&format!("file://{}", file.display())).await
}

/// Opens a page at each width and in each scheme, and checks what every page must fulfil. Also checks that
/// the page lists exactly these nodes, and that its drawing shows all of them if there is room for it.
async fn look(lab: &Lab, browser: &Browser, page: Request, name: &str, nodes: &[&str]) -> Result<()> {
    open_still(lab, browser, page).await?;
    for width in [DESKTOP, PHONE] {
        for scheme in [Scheme::Light, Scheme::Dark] {
            let what = format!("{name}, {width} px, {scheme:?}");
            browser.resize(width, scheme).await?;
            browser.wait_until(&format!("return innerWidth === {width};"), LIMIT).await?;
            if let Some(folder) = std::env::var_os("SCREENSHOTS") {
                let file = format!("{name}-{width}-{scheme:?}.png").to_lowercase();
                std::fs::write(PathBuf::from(folder).join(file), browser.screenshot().await?)?;
            }
            let overflowing: Vec<String> = browser.script(OVERFLOWING).await?;
            assert!(overflowing.is_empty(), "{what}: {overflowing:#?}");
            let contrasts: Vec<(String, f64)> = browser.script(CONTRASTS).await?;
            assert!(!contrasts.is_empty(), "{what}: nothing is written there");
            let mut faint = String::new();
            for (text, contrast) in contrasts.iter().filter(|(_, contrast)| *contrast < CONTRAST) {
                writeln!(faint, "{contrast:.2} {text}")?;
            }
            assert!(faint.is_empty(), "{what}: too faint:\n{faint}");
            let ground: String =
                browser.script("return getComputedStyle(document.body).backgroundColor;").await?;
            assert_eq!(ground == "rgb(255, 255, 255)", scheme == Scheme::Light, "{what}: {ground}");

            let listed: Vec<String> = browser.script(LISTED).await?;
            assert_eq!(listed, nodes, "{what}");
            let drawn: Vec<String> = browser.script(DRAWN).await?;
            assert!(width == DESKTOP || drawn.is_empty(), "{what}: {drawn:?}");
            for node in nodes.iter().filter(|_| width == DESKTOP) {
                let is_node = |text: &String| text == node || node.starts_with(&format!("{text}."));
                assert!(drawn.iter().any(is_node), "{what}: {node} is not in {drawn:?}");
            }
        }
    }
    Ok(())
}

async fn start(lab: &Lab, variables: &[(&str, &str)]) -> Result<(Broker, Browser)> {
    let builder = Broker::builder();
    let builder = variables.iter().fold(builder, |builder, (name, value)| builder.variable(name, value));
    Ok((lab.broker(builder)?, Browser::start(lab).await?))
}

const NODES: [&str; 5] = [
    "10.0.0.7:6379",
    "10.0.0.8:6379",
    "[fd00:1234:5678:9abc::2]:26379",
    "10.0.1.1:26379",
    "sentinel-3.redis.example.com:26379",
];

async fn register_rest(broker: &Broker) -> Result<()> {
    register(broker, "/redis", "10.0.0.8").await?;
    register(broker, "/sentinel", "10.0.1.1").await?;
    register(broker, "/sentinel", "sentinel-3.redis.example.com").await
}

/// The answers of hosts without the component: a 500, another page, and no answer.
const NO_PAGES: [Option<&str>; 3] = [
    Some("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
    Some(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}",
    ),
    None,
];

/// Gives every request this answer. Returns only on an error.
async fn answer_all(listener: &TcpListener, answer: Option<&'static str>) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (mut stream, _) = listener.accept().await?;
        connections.spawn(async move {
            let mut request = vec![];
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await? > 0 {}
            match answer {
                Some(answer) => stream.write_all(answer.as_bytes()).await,
                None => std::future::pending().await,
            }
        });
    }
}

#[test]
fn the_page_follows_a_group_and_keeps_focus_and_selection() {
    scenario(async |lab| {
        let (broker, browser) = start(lab, &[]).await?;
        // From here on the test does not load the page: the page has to refresh itself.
        browser.open(&broker.url()).await?;
        let own_url = format!(
            "return document.querySelector('.commands').textContent.includes('--broker {}');",
            broker.url()
        );
        browser.wait_until(&own_url, LIMIT).await?;
        register(&broker, "/redis", "10.0.0.7").await?;
        register(&broker, "/sentinel", "fd00:1234:5678:9abc::2").await?;
        let two = format!(
            "return {BADGE} === 'Waiting for nodes' && document.querySelectorAll('td.addr').length === 2;"
        );
        browser.wait_until(&two, LIMIT).await?;
        let select = "document.querySelector('nav a').focus();
                      getSelection().selectAllChildren(document.querySelector('td.addr code'));
                      return true;";
        browser.wait_until(select, LIMIT).await?;
        register_rest(&broker).await?;
        let keeps = "getSelection().toString() === '10.0.0.7:6379' && document.activeElement.textContent === '/groups'";
        browser.wait_until(&format!("return {BADGE} === 'Ready' && {keeps};"), LIMIT).await?;
        report(&broker, &json!({"verified": true, "master": {"host": "10.0.0.7", "port": 6379}})).await?;
        browser.wait_until(&format!("return {BADGE} === 'Verified' && {keeps};"), LIMIT).await?;
        broker.delete("/redis/10.0.0.8:6379").send().await?;
        let changed = "document.body.textContent.includes('10.0.0.8:6379 is no longer registered')";
        browser.wait_until(&format!("return {BADGE} === 'Changed' && {changed} && {keeps};"), LIMIT).await?;
        let address = broker.addr();
        drop(broker);
        let away = "document.body.classList.contains('away')";
        let keeps_all = format!("return {away} && {BADGE} === 'Changed' && {keeps};");
        browser.wait_until(&keeps_all, LIMIT).await?;
        let forget = "document.body.classList.remove('away'); return true;";
        let listener = TcpListener::bind(address).await?;
        for answer in NO_PAGES {
            let looking = async {
                browser.wait_until(forget, LIMIT).await?;
                browser.wait_until(&keeps_all, LIMIT).await
            };
            tokio::select! {
                looked = looking => looked?,
                broken = answer_all(&listener, answer) => return broken,
            }
        }
        drop(listener);
        let broker = lab.broker(Broker::builder().listen(address))?;
        browser.wait_until(&format!("return !{away} && {BADGE} === 'Waiting for nodes';"), LIMIT).await?;
        drop(broker);
        browser.end().await
    });
}

#[test]
fn a_link_keeps_the_focus_when_another_comes_before_it() {
    scenario(async |lab| {
        let (broker, browser) = start(lab, &[]).await?;
        register(&broker, "/groups/orders/redis", "10.0.0.7").await?;
        register(&broker, "/groups/sessions/redis", "10.0.0.7").await?;
        browser.open(&format!("{}/groups", broker.url())).await?;
        browser.wait_until("document.querySelectorAll('td.addr a')[1].focus(); return true;", LIMIT).await?;
        let is_listed = |groups: &str| {
            format!(
                "const links = [...document.querySelectorAll('td.addr a')].map(link => link.textContent);
                 return links.join() === '{groups}'
                     && document.activeElement.getAttribute('href') === '/groups/sessions';"
            )
        };
        register(&broker, "/groups/carts/redis", "10.0.0.7").await?;
        browser.wait_until(&is_listed("carts,orders,sessions"), LIMIT).await?;
        broker.delete("/groups/orders/").send().await?;
        browser.wait_until(&is_listed("carts,sessions"), LIMIT).await?;
        browser.end().await
    });
}

#[test]
fn a_page_that_does_not_change_refreshes_less_often() {
    scenario(async |lab| {
        let (broker, browser) = start(lab, &[]).await?;
        browser.open(&broker.url()).await?;
        for (quiet, pause) in [(0, 2000), (70, 10_000), (700, 60_000)] {
            // Simulates a person who comes back to the page after this many seconds.
            let come_back = format!(
                "const [now, set] = [Date.now, setTimeout];
                 window.pauses = [];
                 Date.now = () => now() + 1000 * {quiet};
                 window.setTimeout = (what, pause) => {{ pauses.push(pause); return set(what, 1e6); }};
                 window.restore = () => {{ Date.now = now; window.setTimeout = set; }};
                 document.dispatchEvent(new Event('visibilitychange'));
                 return true;"
            );
            browser.wait_until(&come_back, LIMIT).await?;
            browser.wait_until(&format!("return pauses.includes({pause});"), LIMIT).await?;
            browser.wait_until("restore(); return true;", LIMIT).await?;
        }
        browser.end().await
    });
}

#[test]
fn every_state_of_a_group_fits_every_screen_with_enough_contrast() {
    scenario(async |lab| {
        let (broker, browser) = start(lab, &[]).await?;
        look(lab, &browser, broker.get("/"), "empty", &[]).await?;
        look(lab, &browser, broker.get("/groups"), "no-groups", &[]).await?;
        register(&broker, "/redis", "10.0.0.7").await?;
        register(&broker, "/sentinel", "fd00:1234:5678:9abc::2").await?;
        look(lab, &browser, broker.get("/"), "waiting", &[NODES[0], NODES[2]]).await?;
        register_rest(&broker).await?;
        look(lab, &browser, broker.get("/"), "ready", &NODES).await?;
        report(&broker, &json!({"verified": true, "master": {"host": "10.0.0.8", "port": 6379}})).await?;
        // The page lists the master first.
        let verified = [NODES[1], NODES[0], NODES[2], NODES[3], NODES[4]];
        look(lab, &browser, broker.get("/"), "verified", &verified).await?;
        let unverified = json!({"verified": false, "master": {"host": "10.0.0.8", "port": 6379}, "reason":
            "not verified after 30s; changes of this run are not undone\n10.0.0.7:6379: its link to the master is down\nhint: can it reach 10.0.0.8:6379? `redis-cli -h 10.0.0.7 INFO replication`"});
        report(&broker, &unverified).await?;
        look(lab, &browser, broker.get("/"), "failed", &verified).await?;
        report(&broker, &json!({"verified": true, "master": {"host": "10.0.0.8", "port": 6379}})).await?;
        register(&broker, "/redis", "10.0.0.9").await?;
        assert_eq!(broker.delete("/sentinel/10.0.1.1:26379").send().await?.status, 204);
        let changed = [NODES[1], NODES[0], "10.0.0.9:6379", NODES[2], NODES[4]];
        look(lab, &browser, broker.get("/"), "changed", &changed).await?;
        look(lab, &browser, broker.get("/groups"), "groups", &[]).await?;
        browser.end().await
    });
}

#[test]
fn groups_of_many_nodes_and_of_long_names_fit_every_screen() {
    scenario(async |lab| {
        let browser = Browser::start(lab).await?;
        let addrs = |hosts: &[String], port: u16| {
            hosts.iter().map(|host| format!("{host}:{port}")).collect::<Vec<_>>()
        };
        for (group, redis, sentinels) in [
            (
                "many",
                (0..11).map(|n| format!("10.0.12.{}", 10 + n)).collect::<Vec<_>>(),
                (0..9).map(|n| format!("10.0.13.{}", 10 + n)).collect::<Vec<_>>(),
            ),
            (
                "names",
                (0..3).map(|n| format!("redis-{n}.redis.production.svc.cluster.local")).collect(),
                (0..3).map(|n| format!("sentinel-{n}.sentinel.production.svc.cluster.local")).collect(),
            ),
        ] {
            let builder = Broker::builder().variable("expected_redis", redis.len());
            let broker = lab.broker(builder.variable("expected_sentinels", sentinels.len()))?;
            let path = format!("/groups/{group}");
            for host in &redis {
                register(&broker, &format!("{path}/redis"), host).await?;
            }
            for host in &sentinels {
                register(&broker, &format!("{path}/sentinel"), host).await?;
            }
            let outcome = json!({"verified": true, "master": {"host": redis[0], "port": 6379}});
            let reply = broker.put(format!("{path}/outcome")).json(&outcome).send().await?;
            assert_eq!(reply.status, 204, "{reply}");
            let nodes = [addrs(&redis, 6379), addrs(&sentinels, 26379)].concat();
            let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
            look(lab, &browser, broker.get(&path), group, &nodes).await?;
        }
        browser.end().await
    });
}

#[test]
fn names_as_long_as_they_may_be_stay_on_the_page() {
    scenario(async |lab| {
        let (broker, browser) = start(lab, &[]).await?;
        let long = [&*"a".repeat(63), &"b".repeat(63), &"c".repeat(63), &"d".repeat(61)].join(".");
        let group = format!("/groups/{}", "g".repeat(64));
        for kind in ["redis", "sentinel"] {
            register(&broker, &format!("{group}/{kind}"), &long).await?;
        }
        let outcome =
            json!({"verified": false, "master": {"host": long, "port": 6379}, "reason": "w".repeat(2000)});
        let reply = broker.put(format!("{group}/outcome")).json(&outcome).send().await?;
        assert_eq!(reply.status, 204, "{reply}");
        open_still(lab, &browser, broker.get(&group)).await?;
        for width in [DESKTOP, PHONE] {
            browser.resize(width, Scheme::Light).await?;
            browser.wait_until(&format!("return innerWidth === {width};"), LIMIT).await?;
            let overflowing: Vec<String> = browser.script(OVERFLOWING).await?;
            assert!(overflowing.is_empty(), "{width} px: {overflowing:#?}");
        }
        browser.end().await
    });
}

#[test]
fn a_hostile_text_is_shown_and_does_nothing() {
    scenario(async |lab| {
        let (broker, browser) = start(lab, &[]).await?;
        let hostile = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">\
                       </p></section><style>body { display: none }</style>\" onload=\"document.title = 'taken'";
        register(&broker, "/redis", "10.0.0.7").await?;
        report(&broker, &json!({"verified": false, "reason": hostile})).await?;
        browser.open(&broker.url()).await?;
        let harmless = format!(
            "return document.querySelector('.reason').textContent === {}
                 && document.title === 'mymaster · Not verified'
                 && document.querySelectorAll('body script, img, body style').length === 0;",
            json!(hostile)
        );
        browser.wait_until(&harmless, LIMIT).await?;
        // Even if a script were in the page, the page's policy would block it.
        let not_run = "const script = document.createElement('script');
                       script.textContent = 'window.taken = true';
                       document.body.append(script);
                       return document.contains(script) && window.taken === undefined;";
        browser.wait_until(not_run, LIMIT).await?;
        browser.end().await
    });
}

#[test]
fn a_token_is_a_password_to_sign_in_with() {
    scenario(async |lab| {
        let tokens = [("api_token", "wr1te-s3cret"), ("read_token", "r3ad-s3cret")];
        let (broker, browser) = start(lab, &tokens).await?;
        look(lab, &browser, broker.get("/"), "signed-out", &[]).await?;
        for token in ["r3ad-s3cret", "wr1te-s3cret"] {
            browser.open(&format!("http://operator:{token}@{}/", broker.addr())).await?;
            let signed_in = "const text = document.body.innerText;
                             return text.includes('Waiting for nodes') && !text.includes('s3cret');";
            browser.wait_until(signed_in, LIMIT).await?;
        }
        // The page stays signed in while it refreshes itself.
        let reply = broker.post("/redis").header("authorization", "Bearer wr1te-s3cret").send().await?;
        assert_eq!(reply.status, 201, "{reply}");
        browser.wait_until("return document.querySelectorAll('td.addr').length === 1;", LIMIT).await?;
        browser.end().await
    });
}
