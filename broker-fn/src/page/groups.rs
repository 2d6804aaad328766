//! The list of all groups.

use maud::html;

use super::{Page, REFRESH_SECONDS, footer};
use crate::api::{Groups, Timestamp};

/// The page of `/groups`.
#[must_use]
pub fn groups(groups: &Groups, now: Timestamp) -> Page {
    let Groups { groups, next } = groups;
    let body = html! {
        header {
            p.eyebrow { "Sentinel Broker" }
            h1 { "Groups" }
        }
        main {
            @if groups.is_empty() {
                p.empty { "No node has registered in any group yet." }
            } @else {
                table.groups {
                    thead { tr {
                        th.wide scope="col" { "Group" }
                        th scope="col" { "Redis servers" }
                        th scope="col" { "Sentinels" }
                    } }
                    tbody {
                        @for group in groups {
                            tr data-key=(group.group) {
                                td.addr {
                                    a href={ "/groups/" (group.group) } { (group.group) }
                                    @if group.ready { " " span.pill.good { "complete" } }
                                    @else { " " span.pill.warn { "waiting for nodes" } }
                                    @if group.stale > 0 { " " span.pill.warn { (group.stale) " stale" } }
                                }
                                td.meta data-label="Redis servers" { (group.redis) }
                                td.meta data-label="Sentinels" { (group.sentinels) }
                            }
                        }
                    }
                }
                @if let Some(next) = next { p { a href=(next) { "More groups" } } }
            }
        }
        (footer(now, &html! {}))
    };
    Page::new("Groups · Sentinel Broker", Some(REFRESH_SECONDS), &body)
}
