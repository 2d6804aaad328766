//! `make recording`: a real bootstrap on a real terminal, as an animated picture for the README
//! (`docs/bootstrap.svg`).
//!
//! The screens are those that the runner has drawn, at the times at which it drew them. The nodes register
//! some time apart, so that there is something to see.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Frame, Lab};

const ROWS: u16 = 16;
const COLUMNS: u16 = 88;

/// The time between two registrations.
const PACE: Duration = Duration::from_millis(450);

/// How long the last screen stays.
const HOLD: Duration = Duration::from_secs(8);

/// The width and the height of a character, in pixels.
const CELL: (f64, f64) = (8.43, 18.0);

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<()> {
    let path = std::env::args().nth(1).context("the name of the file to write")?;
    let lab = Lab::new()?;
    let system = lab.system(3, 3).await?;
    let url = system.broker.url();
    let args = ["bootstrap", "--broker", &url];
    let shown = format!("$ sentinel-runner {}\r\n", args.join(" "));
    let mut terminal = lab.terminal(args, &[], (ROWS, COLUMNS), &shown)?;
    terminal.until("still to register", LIMIT).await?;
    for node in system.nodes() {
        // For the viewer: the run itself waits only for the nodes.
        tokio::time::sleep(PACE).await;
        system.broker.register(node).await?;
        terminal.until(&node.addr().to_string(), LIMIT).await?;
    }
    let status = terminal.ended(LIMIT).await?;
    ensure!(status.success(), "{status}:\n{}", terminal.text());
    let wrong = system.wrong("mymaster", 0).await;
    ensure!(wrong.is_empty(), "the runner prints verified, but:\n{}", wrong.join("\n"));
    std::fs::write(&path, svg(terminal.frames())).with_context(|| format!("writing {path}"))?;
    println!("{path}: {} screens", terminal.frames().len());
    Ok(())
}

/// Consecutive cells with the same style.
#[derive(PartialEq, Eq, PartialOrd, Ord, Clone)]
struct Span {
    column: u16,
    text: String,
    class: &'static str,
}

/// The screens as one picture that plays forever. A viewer without animations shows the last screen.
fn svg(frames: &[Frame]) -> String {
    let mut screens: Vec<(Duration, Vec<Vec<Span>>)> = Vec::new();
    for frame in frames {
        let rows: Vec<_> = (0..ROWS).map(|row| spans(&frame.screen, row)).collect();
        if screens.last().is_none_or(|(_, last)| *last != rows) {
            screens.push((frame.at, rows));
        }
    }
    let begin = screens.first().map_or(Duration::ZERO, |(at, _)| *at);
    let end = screens.last().map_or(Duration::ZERO, |(at, _)| *at) - begin + HOLD;
    let (width, height) = (f64::from(COLUMNS) * CELL.0 + 32.0, f64::from(ROWS) * CELL.1 + 56.0);

    let mut style = String::new();
    let mut drawn = String::new();
    // Most rows are the same from screen to screen, so each row is drawn once and reused.
    let mut rows: BTreeMap<Vec<Span>, usize> = BTreeMap::new();
    let mut definitions = String::new();
    for (number, (at, screen)) in screens.iter().enumerate() {
        let percent = |at: Duration| (at - begin).as_secs_f64() / end.as_secs_f64() * 100.0;
        let from = percent(*at);
        let until = screens.get(number + 1).map(|(next, _)| percent(*next));
        let is_last = until.is_none();
        let _ = write!(style, "@keyframes s{number}{{0%{{opacity:{}}}", u8::from(number == 0));
        let _ = write!(style, "{from:.3}%{{opacity:1}}");
        if let Some(until) = until {
            let _ = write!(style, "{until:.3}%{{opacity:0}}");
        }
        let _ = writeln!(style, "100%{{opacity:{}}}}}", u8::from(is_last));
        let still = if is_last { "" } else { " opacity=\"0\"" };
        let _ = write!(drawn, "<g class=\"s\" style=\"animation-name:s{number}\"{still}>");
        for (row, spans) in screen.iter().enumerate().filter(|(_, spans)| !spans.is_empty()) {
            let next = rows.len();
            let id = *rows.entry(spans.clone()).or_insert_with(|| {
                let _ = writeln!(
                    definitions,
                    "<text id=\"r{next}\">{}</text>",
                    spans.iter().map(tspan).collect::<String>()
                );
                next
            });
            let y = row as f64 * CELL.1;
            let _ = write!(drawn, "<use href=\"#r{id}\" y=\"{y}\"/>");
        }
        drawn.push_str("</g>\n");
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"sentinel-runner bootstrap on a terminal\">\n\
         <!-- Recorded from a real run: `make recording` makes it again. -->\n\
         <style>\ntext{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#d4d4d4;\
         white-space:pre}}\n.b{{font-weight:700;fill:#ffffff}}.d{{fill:#8b8b8b}}.g{{fill:#4ec96f}}.y{{fill:#e0b93f}}\
         .r{{fill:#f2665f;font-weight:700}}.c{{fill:#45c4d6;font-weight:700}}\n\
         .s{{animation-duration:{:.2}s;animation-iteration-count:infinite;animation-timing-function:step-end}}\n\
         @media (prefers-reduced-motion:reduce){{.s{{animation:none}}}}\n{style}</style>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#1b1e24\"/>\n\
         <circle cx=\"20\" cy=\"18\" r=\"5\" fill=\"#f2665f\"/><circle cx=\"38\" cy=\"18\" r=\"5\" fill=\"#e0b93f\"/>\
         <circle cx=\"56\" cy=\"18\" r=\"5\" fill=\"#4ec96f\"/>\n\
         <defs>\n{definitions}</defs>\n<g transform=\"translate(16 48)\">\n{drawn}</g>\n</svg>\n",
        end.as_secs_f64()
    )
}

fn tspan(span: &Span) -> String {
    let text = span.text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    // Each span has its own position and width, so that any font stays in the grid.
    let (x, length) = (f64::from(span.column) * CELL.0, span.text.chars().count() as f64 * CELL.0);
    format!(
        "<tspan class=\"{}\" x=\"{x:.1}\" textLength=\"{length:.1}\" lengthAdjust=\"spacingAndGlyphs\">{text}</tspan>",
        span.class
    )
}

/// A row of the screen, without the empty cells at its end.
fn spans(screen: &vt100::Screen, row: u16) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for column in 0..COLUMNS {
        let Some(cell) = screen.cell(row, column) else { continue };
        let text = if cell.has_contents() { cell.contents() } else { " " };
        let class = match (cell.fgcolor(), cell.bold(), cell.dim()) {
            (vt100::Color::Idx(1 | 9), ..) => "r",
            (vt100::Color::Idx(2 | 10), ..) => "g",
            (vt100::Color::Idx(3 | 11), ..) => "y",
            (vt100::Color::Idx(6 | 14), ..) => "c",
            (_, true, _) => "b",
            (_, _, true) => "d",
            _ => "n",
        };
        match spans.last_mut() {
            Some(last) if last.class == class => last.text.push_str(text),
            _ => spans.push(Span { column, text: text.to_owned(), class }),
        }
    }
    while spans.last().is_some_and(|span| span.text.trim().is_empty()) {
        spans.pop();
    }
    if let Some(last) = spans.last_mut() {
        last.text.truncate(last.text.trim_end().len());
    }
    spans
}
