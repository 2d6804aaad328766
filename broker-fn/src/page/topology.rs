//! The drawing of a group: its Sentinels, the master that they monitor, and the replicas that follow it.
//!
//! The drawing is a column as wide as a phone, so that text keeps its size everywhere. More nodes make it
//! longer.

use maud::{Markup, html};

use super::status::{View, common_suffix};
use super::{counted, shortened};
use crate::api::{Addr, Kind, Registration};

const WIDTH: usize = 340;
/// The height of a node, and the space below it.
const NODE: usize = 26;
const GAP: usize = 6;
/// The space that an edge crosses.
const EDGE: usize = 30;
/// The inside of the box around the Sentinels, and the room for its heading.
const PADDING: usize = 8;
const HEADING: usize = 24;
const MASTER: usize = 44;
/// The x position of the line that connects the replicas, and of the replicas.
const TRUNK: usize = 16;
const INDENT: usize = 40;
/// The width of two characters of an address. Common monospaced fonts are a little narrower at this size.
const TWO_CHARACTERS: usize = 15;

/// The drawing and its caption.
pub(super) fn figure(view: &View<'_>) -> Markup {
    let (sentinels, sentinels_end) = sentinels(view);
    let master_top = sentinels_end + EDGE;
    let master_end = master_top + MASTER;
    let (replicas, end) = replicas(view, master_end);
    let (class, shows) = match &view.roster.outcome {
        _ if view.exists_by_report() => {
            ("topology stands", "The system as its nodes report it. No run has verified it.")
        }
        _ if view.exists() => {
            ("topology stands", "The system as it was verified. Dashed: new, stale and missing nodes.")
        }
        Some(_) => ("topology planned", "The planned system. It is not verified."),
        None => ("topology planned", "The planned system. A master that exists already stays the master."),
    };
    html! {
        figure {
            svg class=(class) viewBox={ "0 0 " (WIDTH) " " (end + 1) } role="img" aria-label="The topology of the group" {
                (sentinels)
                path.edge.watch d={ "M" (WIDTH / 2) " " (sentinels_end) "V" (master_top) } {}
                text.label x=(WIDTH / 2 + 8) y=(sentinels_end + EDGE / 2 + 4) { "monitor" }
                (replicas)
                (master(view, master_top))
            }
            figcaption { (shows) }
        }
    }
}

/// The box of Sentinels, and the y position of its end.
fn sentinels(view: &View<'_>) -> (Markup, usize) {
    let roster = view.roster;
    let missing = usize::from(roster.missing.sentinels);
    let inner = WIDTH - 2 * PADDING;
    let half = (inner - GAP) / 2;
    let nodes = &roster.sentinels;
    let name = named(nodes);
    // Two columns if every name fits into half the width.
    let columns =
        if nodes.iter().all(|node| fits(&name(&node.addr), half)) && !nodes.is_empty() { 2 } else { 1 };
    let width = if columns == 2 { half } else { inner };
    let place =
        |index: usize| (PADDING + index % columns * (width + GAP), HEADING + index / columns * (NODE + GAP));
    let there = nodes.len();
    let rows = (there + usize::from(missing > 0)).max(1).div_ceil(columns);
    let end = HEADING + rows * (NODE + GAP) - GAP + PADDING;
    let markup = html! {
        rect.around x="0.5" y="0.5" width=(WIDTH - 1) height=(end) rx="6" {}
        text.label x=(PADDING + 2) y="16" {
            "Sentinels · quorum " (roster.expected.quorum) " of " (roster.expected.sentinels)
        }
        @for (index, node) in nodes.iter().enumerate() {
            @let class = if view.is_new(Kind::Sentinel, &node.addr) || node.stale { "missing" } else { "node" };
            (node_at(place(index), width, &name(&node.addr), class))
        }
        @if missing > 0 { (missing_at(place(there), width, missing, Kind::Sentinel)) }
    };
    (markup, end)
}

fn master(view: &View<'_>, top: usize) -> Markup {
    let name = named(&view.roster.redis);
    let is_registered = |addr: &Addr| view.roster.redis.iter().any(|node| &node.addr == addr);
    html! {
        @match view.master() {
            Some(addr) => {
                @let is_stale = view.roster.redis.iter().any(|node| node.addr == *addr && node.stale);
                @let class = if view.exists() && !is_stale { "master" } else { "missing" };
                rect.(class) x="0.5" y=(top) width=(WIDTH - 1) height=(MASTER) rx="6" {}
                text.label x="12" y=(top + 17) {
                    @if view.exists() { "master" } @else { "planned master" }
                    @if !is_registered(addr) { ", no longer registered" }
                }
                (addr_at(12, top + 35, WIDTH - 24, &name(addr)))
            }
            None => {
                rect.missing x="0.5" y=(top) width=(WIDTH - 1) height=(MASTER) rx="6" {}
                text.label x="12" y=(top + 17) { "planned master" }
                text.label x="12" y=(top + 34) { "the first Redis server to register" }
            }
        }
    }
}

/// The replicas with the lines to them, and the y position of their end.
fn replicas(view: &View<'_>, top: usize) -> (Markup, usize) {
    let roster = view.roster;
    let name = named(&roster.redis);
    let nodes: Vec<_> = roster.redis.iter().filter(|node| Some(&node.addr) != view.master()).collect();
    // If there is no master, the first missing server is drawn as the master.
    let missing = usize::from(roster.missing.redis).saturating_sub(usize::from(view.master().is_none()));
    let width = WIDTH - INDENT - 1;
    let place = |index: usize| (INDENT, top + EDGE / 2 + index * (NODE + GAP));
    let rows = nodes.len() + usize::from(missing > 0);
    let Some(last) = rows.checked_sub(1) else { return (html! {}, top) };
    let middle = |index: usize| place(index).1 + NODE / 2;
    let markup = html! {
        path.edge d={ "M" (TRUNK) " " (top) "V" (middle(last)) } {}
        @for (index, node) in nodes.iter().enumerate() {
            @let is_new = view.is_new(Kind::Redis, &node.addr) || node.stale;
            path.edge d={ "M" (TRUNK) " " (middle(index)) "H" (INDENT) } {}
            (node_at(place(index), width, &name(&node.addr), if is_new { "missing" } else { "node" }))
        }
        @if missing > 0 {
            path.edge d={ "M" (TRUNK) " " (middle(last)) "H" (INDENT) } {}
            (missing_at(place(last), width, missing, Kind::Redis))
        }
    };
    (markup, place(last).1 + NODE)
}

/// The shown names of nodes: their addresses without the suffix that all of them share.
fn named(nodes: &[Registration]) -> impl Fn(&Addr) -> String {
    let suffix = common_suffix(nodes);
    move |addr| {
        let addr = addr.to_string();
        suffix.as_ref().and_then(|suffix| addr.strip_suffix(suffix)).unwrap_or(&addr).to_owned()
    }
}

fn node_at((x, y): (usize, usize), width: usize, addr: &str, class: &str) -> Markup {
    html! {
        rect class=(class) x={ (x) ".5" } y={ (y) ".5" } width=(width - 1) height=(NODE - 1) rx="4" {}
        (addr_at(x + 8, y + 17, width - 16, addr))
    }
}

fn missing_at((x, y): (usize, usize), width: usize, count: usize, kind: Kind) -> Markup {
    html! {
        rect.missing x={ (x) ".5" } y={ (y) ".5" } width=(width - 1) height=(NODE - 1) rx="4" {}
        text.label x=(x + 8) y=(y + 17) { (counted(count, kind)) " missing" }
    }
}

/// An address, shortened to fit, with the whole address as the tooltip.
fn addr_at(x: usize, y: usize, width: usize, addr: &str) -> Markup {
    html! {
        text.addr x=(x) y=(y) { (shortened(addr, 2 * width / TWO_CHARACTERS)) title { (addr) } }
    }
}

fn fits(addr: &str, width: usize) -> bool {
    addr.len() <= 2 * (width - 16) / TWO_CHARACTERS
}
