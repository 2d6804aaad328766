//! Colours, and when to use them.

use anstyle::{AnsiColor, Effects, Style as Ansi};

/// When to colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ColourChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How to print text: in colour or not, and how wide.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// Whether to colour.
    pub colour: bool,
    /// The terminal's columns. `None`: not a terminal, and nothing is wrapped.
    pub columns: Option<usize>,
}

/// What a piece of text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Wrong, but may pass.
    Warn,
    /// Wrong, and will not pass.
    Bad,
    /// What to do.
    Hint,
    /// Less important than the rest.
    Faint,
    /// More important than the rest.
    Strong,
    /// Like any other text.
    Plain,
}

impl Style {
    /// What the environment and the terminal allow. `no_color`: whether `NO_COLOR` is set and not empty
    /// <https://no-color.org>.
    #[must_use]
    pub fn new(choice: ColourChoice, no_color: bool, columns: Option<usize>) -> Self {
        let colour = match choice {
            ColourChoice::Auto => columns.is_some() && !no_color,
            ColourChoice::Always => true,
            ColourChoice::Never => false,
        };
        Self { colour, columns }
    }

    /// The text in the colour of its tone.
    #[must_use]
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let style = match tone {
            _ if !self.colour => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Good => AnsiColor::Green.on_default(),
            Tone::Warn => AnsiColor::Yellow.on_default(),
            Tone::Bad => AnsiColor::Red.on_default().effects(Effects::BOLD),
            Tone::Hint => AnsiColor::Cyan.on_default().effects(Effects::BOLD),
            Tone::Faint => Ansi::new().effects(Effects::DIMMED),
            Tone::Strong => Ansi::new().effects(Effects::BOLD),
        };
        format!("{style}{text}{style:#}")
    }

    /// The text in lines that fit. `first`: how many columns the caller has already written. Later lines are
    /// indented by `indent` columns.
    #[must_use]
    pub fn wrap(self, text: &str, first: usize, indent: usize) -> Vec<String> {
        let Some(columns) = self.columns else { return vec![text.to_owned()] };
        let (first, indent) = (" ".repeat(first), " ".repeat(indent));
        let options =
            textwrap::Options::new(columns.max(40)).initial_indent(&first).subsequent_indent(&indent);
        let mut lines: Vec<_> = textwrap::wrap(text, options).into_iter().map(String::from).collect();
        if let Some(line) = lines.first_mut() {
            *line = line.split_off(first.len().min(line.len()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_terminals_unless_it_is_asked_for() {
        for (choice, no_color, columns, colour) in [
            (ColourChoice::Auto, false, Some(80), true),
            (ColourChoice::Auto, true, Some(80), false),
            (ColourChoice::Auto, false, None, false),
            (ColourChoice::Always, true, None, true),
            (ColourChoice::Never, false, Some(80), false),
        ] {
            assert_eq!(
                Style::new(choice, no_color, columns).colour,
                colour,
                "{choice:?} {no_color} {columns:?}"
            );
        }
    }

    #[test]
    fn wrapped_lines_fit_and_are_set_in() {
        let style = Style { colour: false, columns: Some(40) };
        let lines = style.wrap("one two three four five six seven eight nine ten eleven", 11, 13);
        assert_eq!(lines[0].len() + 11, 11 + "one two three four five six".len());
        assert!(
            lines[1].starts_with(&" ".repeat(13)) && lines.iter().all(|line| line.len() <= 40),
            "{lines:?}"
        );
    }
}
