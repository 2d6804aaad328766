//! The component's settings, resolved from Spin variables and checked.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::api::{Config, Expected};

/// Every variable, in the order in which mistakes are reported.
pub const VARIABLES: [&str; 10] = [
    "default_group",
    "expected_redis",
    "expected_sentinels",
    "quorum",
    "api_token",
    "read_token",
    "runner_token",
    "trusted_proxy_hops",
    "max_registrations",
    "max_groups",
];

/// How many registrations there may be in all. A roster after a change lists all keys. With 1.5 million keys
/// on Spin 4.1 with SQLite, that took more than the store's ten seconds.
const MAX_REGISTRATIONS_IN_ALL: u32 = 1_000_000;

/// The most groups, if each may hold this many registrations of each kind.
fn most_groups(registrations: u16) -> u16 {
    let most = MAX_REGISTRATIONS_IN_ALL / 2 / u32::from(registrations);
    u16::try_from(most).unwrap_or(u16::MAX)
}

/// The settings in force.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The answer of `GET /config`.
    pub config: Config,
    /// The tokens that clients must present, if any.
    pub tokens: Option<Tokens>,
}

/// The tokens with which clients identify themselves.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// This token may do everything. If there is a runner's token, this token may not do what only the
    /// runner's token may.
    pub api: Secret,
    /// This token may do everything. If it is set, no other token may write outcomes or delete groups.
    pub runner: Option<Secret>,
    /// This token may only read, if it is set.
    pub read: Option<Secret>,
}

/// All mistakes in the variables, one sentence each. None contains the value of a secret.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the broker is misconfigured: {}", .mistakes.join("; "))]
pub struct BadSettings {
    mistakes: Vec<String>,
    /// Who may see the mistakes.
    pub audience: Audience,
}

/// Who may see the mistakes in the variables.
#[derive(Debug, Clone)]
pub enum Audience {
    /// No token is required.
    Everybody,
    /// Clients that present one of these tokens.
    WithToken(Tokens),
    /// The tokens are unusable too, so no client can prove that it may see the mistakes.
    Nobody,
}

/// A variable that the host could not provide. The reason is only logged, because any client may see this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

impl Settings {
    /// Resolves the settings. `lookup` returns `None` for a variable that the manifest does not declare. Then
    /// the default applies.
    ///
    /// # Errors
    ///
    /// If any variable is unusable. The error contains all mistakes, so that one look is enough to correct
    /// them.
    pub fn from_variables(
        lookup: impl Fn(&'static str) -> Result<Option<String>, Unreadable>,
    ) -> Result<Self, BadSettings> {
        let mut variables = Variables { lookup, mistakes: Vec::new() };
        let default_group = variables.parse("default_group", "mymaster");
        let redis = variables.number("expected_redis", 2, 1);
        let sentinels = variables.number("expected_sentinels", 3, 1);
        let quorum = variables.number("quorum", 0, 0);
        let api_token = variables.token("api_token");
        let read_token = variables.token("read_token");
        let runner_token = variables.token("runner_token");
        let trusted_proxy_hops = variables.number("trusted_proxy_hops", 0, 0);
        let max_registrations = variables.number("max_registrations", 64, 1);
        let max_groups = variables.number("max_groups", 1000, 1);

        if let (Some(quorum), Some(sentinels)) = (quorum, sentinels)
            && quorum > sentinels
        {
            variables.mistakes.push(format!(
                "`quorum` is {quorum}, but `expected_sentinels` is {sentinels}: no quorum could be reached"
            ));
        }
        for (name, expected) in [("expected_redis", redis), ("expected_sentinels", sentinels)] {
            if let (Some(expected), Some(max)) = (expected, max_registrations)
                && expected > max
            {
                variables.mistakes.push(format!(
                    "`max_registrations` is {max}, less than `{name}` ({expected}): no group could ever be complete"
                ));
            }
        }
        let max_groups = max_groups
            .zip(max_registrations)
            .map(|(groups, registrations)| groups.min(most_groups(registrations)));
        let tokens = tokens(&mut variables.mistakes, api_token, read_token, runner_token);
        let audience = match &tokens {
            Some(None) => Audience::Everybody,
            Some(Some(tokens)) => Audience::WithToken(tokens.clone()),
            None => Audience::Nobody,
        };

        let settings = (|| {
            let (redis, sentinels) = (redis?, sentinels?);
            let quorum = match quorum? {
                0 => sentinels / 2 + 1,
                given => given,
            };
            let config = Config {
                default_group: default_group?,
                expected: Expected { redis, sentinels, quorum },
                trusted_proxy_hops: trusted_proxy_hops?,
                max_registrations: max_registrations?,
                max_groups: max_groups?,
            };
            Some(Self { config, tokens: tokens? })
        })();
        match settings {
            Some(settings) if variables.mistakes.is_empty() => Ok(settings),
            _ => Err(BadSettings { mistakes: variables.mistakes, audience }),
        }
    }
}

/// The tokens, if all are usable and fit together. `Some(None)` if no token is required.
fn tokens(
    mistakes: &mut Vec<String>,
    api: Option<Option<Secret>>,
    read: Option<Option<Secret>>,
    runner: Option<Option<Secret>>,
) -> Option<Option<Tokens>> {
    let (api, read, runner) = (api?, read?, runner?);
    let before = mistakes.len();
    for (name, token) in [("read_token", &read), ("runner_token", &runner)] {
        match (&api, token) {
            (None, Some(_)) => mistakes.push(format!(
                "`{name}` is set, but `api_token` is not: writing would be open to everybody; set both"
            )),
            (Some(api), Some(token)) if api.matches(token.0.as_bytes()) => mistakes.push(format!(
                "`{name}` has the same value as `api_token`, and would give the same rights; make them differ"
            )),
            _ => {}
        }
    }
    if let (Some(read), Some(runner)) = (&read, &runner)
        && read.matches(runner.0.as_bytes())
    {
        mistakes.push(
            "`runner_token` has the same value as `read_token`, which could then write; make them differ"
                .into(),
        );
    }
    (mistakes.len() == before).then(|| api.map(|api| Tokens { api, read, runner }))
}

/// Reads variables and collects mistakes: a getter that returns `None` has added a mistake.
struct Variables<L> {
    lookup: L,
    mistakes: Vec<String>,
}

impl<L: Fn(&'static str) -> Result<Option<String>, Unreadable>> Variables<L> {
    fn text(&mut self, name: &'static str, default: &str) -> Option<String> {
        match (self.lookup)(name) {
            Ok(value) => Some(value.unwrap_or_else(|| default.to_owned())),
            Err(Unreadable) => {
                self.mistakes.push(format!("`{name}` can't be read; see the component's log"));
                None
            }
        }
    }

    fn parse<T: FromStr<Err: fmt::Display>>(&mut self, name: &'static str, default: &str) -> Option<T> {
        let text = self.text(name, default)?;
        text.parse().map_err(|error| self.mistakes.push(format!("`{name}` is {text:?}: {error}"))).ok()
    }

    fn number(&mut self, name: &'static str, default: u16, least: u16) -> Option<u16> {
        let text = self.text(name, &default.to_string())?;
        let number = text.parse().ok().filter(|number| *number >= least);
        if number.is_none() {
            self.mistakes
                .push(format!("`{name}` is {text:?}; it takes a whole number from {least} to {}", u16::MAX));
        }
        number
    }

    /// `Some(None)` for an empty token: no token is required.
    fn token(&mut self, name: &'static str) -> Option<Option<Secret>> {
        let token = self.text(name, "")?;
        // A token with a stray blank or line break is rejected. Untrimmed, it would keep all clients out.
        // Trimmed, it could become empty and let all clients in.
        if token.bytes().all(|byte| byte.is_ascii_graphic()) {
            Some((!token.is_empty()).then_some(Secret(token)))
        } else {
            self.mistakes.push(format!(
                "`{name}` contains spaces, line breaks or other characters that are not valid in a token"
            ));
            None
        }
    }
}

/// A value that is compared and never shown.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Whether `candidate` is the secret. The time that this takes reveals nothing about either: digests of
    /// fixed length are compared in full.
    #[must_use]
    pub fn matches(&self, candidate: &[u8]) -> bool {
        let (ours, theirs) = (Sha256::digest(&self.0), Sha256::digest(candidate));
        let difference = ours.iter().zip(theirs.iter()).fold(0, |seen, (a, b)| seen | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings from the given variables. All other variables are undeclared.
    fn settings(variables: &[(&str, &str)]) -> Result<Settings, BadSettings> {
        Settings::from_variables(|name| {
            Ok(variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        })
    }

    fn mistakes(variables: &[(&str, &str)]) -> Vec<String> {
        settings(variables).expect_err("bad settings were accepted").mistakes
    }

    #[test]
    fn undeclared_variables_have_the_documented_defaults() {
        let settings = settings(&[]).unwrap();
        assert_eq!(
            settings.config,
            Config {
                default_group: "mymaster".parse().unwrap(),
                expected: Expected { redis: 2, sentinels: 3, quorum: 2 },
                trusted_proxy_hops: 0,
                max_registrations: 64,
                max_groups: 1000,
            }
        );
        assert!(settings.tokens.is_none());
    }

    #[test]
    fn the_manifest_declares_every_variable_with_the_same_default() {
        let manifest = include_str!("../../spin.toml");
        for name in VARIABLES {
            assert!(manifest.contains(&format!("\n{name} = {{ default = ")), "`{name}` is not declared");
            assert!(
                manifest.contains(&format!("\n{name} = \"{{{{ {name} }}}}\"")),
                "`{name}` is not passed on"
            );
        }
        let declared = |name: &'static str| {
            let line = manifest.lines().find(|line| line.starts_with(&format!("{name} = {{ default")))?;
            Some(line.split('"').nth(1)?.to_owned())
        };
        let with_manifest = Settings::from_variables(|name| Ok(declared(name))).unwrap();
        assert_eq!(with_manifest.config, settings(&[]).unwrap().config);
        assert!(with_manifest.tokens.is_none());
    }

    #[test]
    fn a_quorum_of_zero_is_a_majority_of_the_expected_sentinels() {
        for (sentinels, quorum) in [("1", 1), ("2", 2), ("3", 2), ("4", 3), ("5", 3), ("64", 33)] {
            let settings = settings(&[("expected_sentinels", sentinels)]).unwrap();
            assert_eq!(settings.config.expected.quorum, quorum, "of {sentinels}");
        }
        let given = settings(&[("expected_sentinels", "5"), ("quorum", "5")]).unwrap();
        assert_eq!(given.config.expected.quorum, 5);
    }

    #[test]
    fn each_unusable_value_is_refused_by_name() {
        for (name, value) in [
            ("default_group", ""),
            ("default_group", "a group"),
            ("expected_redis", "0"),
            ("expected_redis", ""),
            ("expected_redis", "two"),
            ("expected_sentinels", "0"),
            ("expected_sentinels", "-1"),
            ("quorum", "1.5"),
            ("quorum", "4"),
            ("trusted_proxy_hops", "65536"),
            ("max_registrations", "0"),
            ("max_registrations", "1"),
            ("max_registrations", " 64"),
            ("max_groups", "0"),
            ("max_groups", "65536"),
        ] {
            let mistakes = mistakes(&[(name, value)]).join("\n");
            assert!(mistakes.contains(&format!("`{name}`")), "{name}={value:?}: {mistakes}");
        }
    }

    #[test]
    fn there_are_never_more_groups_than_can_be_listed() {
        for (groups, registrations, most) in [
            ("1000", "64", 1000),
            ("1000", "500", 1000),
            ("1000", "501", 998),
            ("1000", "65535", 7),
            ("65535", "7", 65535),
            ("65535", "64", 7812),
        ] {
            let settings = settings(&[("max_groups", groups), ("max_registrations", registrations)]).unwrap();
            assert_eq!(settings.config.max_groups, most, "{groups} of {registrations}");
        }
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let bad = VARIABLES.map(|name| (name, "not valid\n"));
        let mistakes = mistakes(&bad);
        assert_eq!(mistakes.len(), VARIABLES.len(), "{mistakes:?}");
        for (mistake, name) in mistakes.iter().zip(VARIABLES) {
            assert!(mistake.starts_with(&format!("`{name}`")), "{mistake}");
        }
    }

    #[test]
    fn a_variable_that_cannot_be_read_is_a_mistake_and_no_default() {
        let bad =
            Settings::from_variables(|name| if name == "api_token" { Err(Unreadable) } else { Ok(None) });
        assert_eq!(bad.unwrap_err().mistakes, ["`api_token` can't be read; see the component's log"]);
    }

    #[test]
    fn any_other_token_needs_an_api_token_beside_it_that_is_another() {
        for (bad, why) in [
            (&[("read_token", "r")][..], "open to everybody"),
            (&[("read_token", "r"), ("api_token", "")], "open to everybody"),
            (&[("read_token", "r"), ("api_token", "r")], "make them differ"),
            (&[("read_token", "r"), ("api_token", "a"), ("runner_token", "r")], "make them differ"),
        ] {
            let mistakes = mistakes(bad);
            assert_eq!(mistakes.len(), 1, "{mistakes:?}");
            for part in ["`read_token`", why] {
                assert!(mistakes[0].contains(part), "{mistakes:?}");
            }
        }
        let tokens = settings(&[("read_token", "r"), ("api_token", "a")]).unwrap().tokens.unwrap();
        assert!(tokens.api.matches(b"a") && tokens.read.unwrap().matches(b"r") && tokens.runner.is_none());
        let tokens = settings(&[("runner_token", "r"), ("api_token", "a")]).unwrap().tokens.unwrap();
        assert!(tokens.api.matches(b"a") && tokens.runner.unwrap().matches(b"r") && tokens.read.is_none());
        for alone in [&[("runner_token", "r")][..], &[("runner_token", "r"), ("api_token", "r")]] {
            assert!(mistakes(alone).join("").contains("`runner_token`"));
        }
        let tokens = settings(&[("read_token", ""), ("api_token", "a")]).unwrap().tokens.unwrap();
        assert!(tokens.read.is_none());
    }

    #[test]
    fn a_secret_is_never_shown() {
        let token = "s3cr3t-t0ken";
        let settings = settings(&[("api_token", token), ("read_token", "another")]).unwrap();
        assert!(!format!("{settings:?}").contains("another"));
        assert!(!format!("{settings:?}").contains(token));
        let bad = mistakes(&[("api_token", "s3cr3t t0ken")]);
        assert!(!format!("{bad:?}").contains("s3cr3t"), "{bad:?}");
    }

    #[test]
    fn a_secret_matches_only_itself() {
        let secret = Secret("token".into());
        assert!(secret.matches(b"token"));
        for other in ["", "toke", "token ", "Token", "tokens"] {
            assert!(!secret.matches(other.as_bytes()), "{other:?}");
        }
    }
}
