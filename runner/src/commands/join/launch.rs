//! The command that is started, and the server's input: options, standard input, a Sentinel's file.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use broker_fn::api::Kind;

use super::config::JoinConfig;
use super::config_line::{line, split};
use super::decide::{Disk, InGroup, Start};
use super::disk::disk;
use super::sentinel_file::write_sentinel_file;
use super::server_command::{ServerSettings, shown};
use crate::error::Failure;
use crate::node::replication::HELD_MASTER;
use crate::node::secret::is_secret_setting;
use crate::node::sentinel::BY_NAME;

/// The command that is started, and the server's input.
#[derive(Debug)]
pub struct Launch<'a> {
    pub words: Vec<OsString>,
    /// Configuration for the server's standard input. Unlike a command line, no other user can read it.
    pub input: Option<String>,
    /// The Sentinel's file, and lines to add to it.
    file: Option<(&'a PathBuf, Vec<String>)>,
    /// Whether the server has to be sent `REPLICAOF NO ONE` once it answers.
    pub promotes: bool,
}

impl<'a> Launch<'a> {
    /// `starts` is how the node starts in each of its groups. A Redis server has one group. `held_port`: the
    /// port at which a held server finds [`HELD_MASTER`].
    pub fn new(
        config: &'a JoinConfig,
        settings: &ServerSettings,
        starts: &[InGroup],
        held_port: u16,
    ) -> Self {
        let mut words = config.command.words.clone();
        // In the background, the server would not be a child of this process.
        words.extend(["--daemonize", "no"].map(OsString::from));
        // systemd hears of the server from this process. With `upstart`, the server would stop itself, and
        // wait for that to be seen.
        if settings.get("supervised").is_some() {
            words.extend(["--supervised", "no"].map(OsString::from));
        }
        let promotes = starts.iter().any(|is| is.start == Start::Lead) && settings.follows();
        let (input, file) = match config.kind {
            Kind::Redis => {
                for InGroup { start, .. } in starts {
                    words.extend(
                        redis_options(config, start, held_port, promotes).into_iter().map(OsString::from),
                    );
                }
                let input = replication_login(config);
                if input.is_some() {
                    // Redis recognises `-` in the first place and in the last.
                    words.push("-".into());
                }
                (input, None)
            }
            Kind::Sentinel => {
                let lines = sentinel_lines(config, settings, starts);
                (None, config.command.config_file.as_ref().map(|path| (path, lines)))
            }
        };
        Self { words, input, file, promotes }
    }

    pub fn write_file(&self) -> Result<(), Failure> {
        match &self.file {
            Some((path, lines)) if !lines.is_empty() || !path.exists() => write_sentinel_file(path, lines),
            Some(_) | None => Ok(()),
        }
    }

    /// The command that would be started, without secrets. Empty if the node would wait.
    pub fn dry_run(&self, starts: &[InGroup]) -> Vec<String> {
        if starts.iter().any(|is| matches!(is.start, Start::Wait(_))) {
            return Vec::new();
        }
        let mut lines = vec![shown(&self.words)];
        if self.promotes {
            lines.push("and once the server answers: REPLICAOF NO ONE".into());
        }
        let input = self.input.iter().flat_map(|input| input.lines());
        lines.extend(input.map(|line| format!("on its standard input: {}", masked(line))));
        if let Some((path, added)) = &self.file {
            lines.extend(added.iter().map(|line| format!("in {}: {}", path.display(), masked(line))));
        }
        lines
    }
}

/// A configuration line without the password in it.
fn masked(line: &str) -> String {
    let words: Vec<String> =
        split(line.as_bytes()).iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let Some(secret) = words.iter().position(|word| is_secret_setting(word)) else { return line.to_owned() };
    // In `sentinel auth-pass`, the group comes before the password.
    let shown = secret + 1 + usize::from(words[secret].eq_ignore_ascii_case("auth-pass"));
    words[..shown.min(words.len())].join(" ") + " ***"
}

/// The options of a Redis server. They come last, so they take precedence over the server's file, which may
/// be out of date.
fn redis_options(config: &JoinConfig, start: &Start, held_port: u16, promotes: bool) -> Vec<String> {
    let mut options = Vec::new();
    let mut option = |words: &[&str]| options.extend(words.iter().map(|word| (*word).to_owned()));
    if let Some(announce) = &config.announce {
        option(&["--replica-announce-ip", announce.host.as_str()]);
        option(&["--replica-announce-port", &announce.port.to_string()]);
    }
    match start {
        Start::Follow { master, ahead, .. } => {
            option(&["--replicaof", &master.host, &master.port.to_string()]);
            if !ahead.is_empty() {
                option(&["--replica-priority", "0"]);
            }
        }
        // With another priority, a Sentinel that knows the server's address could promote it, even without
        // data.
        Start::Held => {
            option(&["--replicaof", HELD_MASTER, &held_port.to_string(), "--replica-priority", "0"]);
        }
        // A replica of no server until it is promoted: `no one` would not undo what the file contains
        // ([`ServerSettings::follows`]).
        Start::Lead if promotes => option(&["--replicaof", HELD_MASTER, "0"]),
        Start::Lead | Start::Alone | Start::AsItIs | Start::Monitor { .. } | Start::Wait(_) => {}
    }
    options
}

/// What a replica needs to log in to its master. A master gets it too, because it may become a replica.
fn replication_login(config: &JoinConfig) -> Option<String> {
    let login = config.nodes.replication_login.as_ref()?;
    let user = login.username.as_ref().map(|user| line(&["masteruser", user]) + "\n").unwrap_or_default();
    Some(user + &line(&["masterauth", login.password.reveal()]) + "\n")
}

/// The lines that a Sentinel's file gets.
fn sentinel_lines(config: &JoinConfig, settings: &ServerSettings, starts: &[InGroup]) -> Vec<String> {
    let mut lines = Vec::new();
    if starts.iter().all(|is| is.start == Start::AsItIs) {
        return lines;
    }
    let mut add = |words: &[&str]| lines.push(line(words));
    let announce = config.announce.as_ref();
    let monitored = || {
        starts.iter().filter_map(|is| match &is.start {
            Start::Monitor { master, quorum, options, id } => {
                Some((is.group.as_ref()?, master, quorum, options, id))
            }
            _ => None,
        })
    };
    let named_master = monitored().any(|(_, master, ..)| master.is_name());
    if named_master || announce.is_some_and(|announce| announce.host.ip().is_none()) {
        // With `announce-hostnames`, the Sentinel keeps names too, and not only the addresses that they had
        // when it heard of them.
        for setting in BY_NAME {
            add(&["sentinel", setting, "yes"]);
        }
    }
    if let Some(announce) = announce {
        add(&["sentinel", "announce-ip", announce.host.as_str()]);
        add(&["sentinel", "announce-port", &announce.port.to_string()]);
    }
    // With another id, the Sentinel may hear a late hello of its former self. Then it lists itself as another
    // Sentinel, permanently (seen on Redis 7.0.15). A Sentinel has one id, in all of its groups.
    let id = monitored().find_map(|(.., id)| id.as_ref());
    if let Some(id) = id.filter(|_| !settings.has_sentinel_id()) {
        add(&["sentinel", "myid", id]);
    }
    for (group, master, quorum, options, _) in monitored() {
        let group = group.as_str();
        add(&["sentinel", "monitor", group, &master.host, &master.port.to_string(), &quorum.to_string()]);
        for (name, value) in options {
            add(&["sentinel", name, group, value]);
        }
        for (old, new) in &config.nodes.redis.renamed {
            add(&["sentinel", "rename-command", group, old, new]);
        }
        if let Some(login) = &config.nodes.redis.login {
            if let Some(user) = &login.username {
                add(&["sentinel", "auth-user", group, user]);
            }
            add(&["sentinel", "auth-pass", group, login.password.reveal()]);
        }
    }
    lines
}

/// How the node is about to start, in words for a person.
pub fn describe_start(start: &Start, settings: &ServerSettings) -> String {
    match start {
        Start::Held => {
            let data = match disk(settings) {
                Disk::Data | Disk::Outdated => "the server has data on its disk",
                Disk::Empty | Disk::Blank | Disk::Unread => "the server is empty",
            };
            format!(
                "starting held, because the master is not known yet: the server takes no writes until \
                 `sentinel-runner bootstrap` makes it the master or a replica, or the Sentinels report the \
                 master; {data}\nhint: run `sentinel-runner bootstrap`; or, only if there is no other \
                 master and no server with newer data: REPLICAOF NO ONE makes this server a master that \
                 takes writes"
            )
        }
        Start::Alone if settings.follows() => {
            "starting as a replica, as the server is configured: no system is known yet".into()
        }
        Start::Alone => "starting alone: no system is known yet".into(),
        Start::AsItIs => "starting with the master in its configuration file".into(),
        Start::Follow { master, is_up: true, .. } => format!("starting as a replica of {master}"),
        Start::Follow { master, is_up: false, ahead } if !ahead.is_empty() => format!(
            "starting as a replica of {master}, which is not up, and standing back (replica-priority 0): \
             another node has more data, so the Sentinels must not promote this node before it has reached \
             its master"
        ),
        Start::Follow { master, is_up: false, .. } => format!(
            "starting as a replica of {master}, which is not up: the Sentinels can promote this node \
             with the data on its disk"
        ),
        Start::Lead => {
            "starting as the master: the Sentinels report this node as the master, and no replica has data \
             that this node lacks"
                .into()
        }
        Start::Monitor { master, quorum, .. } => {
            format!("starting to monitor {master}, with quorum {quorum}")
        }
        Start::Wait(waiting) => format!("would wait: {waiting}\nhint: {}", waiting.hint()),
    }
}

/// Whether a Sentinel on this machine can have an option of its peers. A script is a file on their machines,
/// and Sentinel does not start if it can't run its script.
pub fn is_usable_here(name: &str, value: &str) -> bool {
    let is_executable = |path: &str| {
        fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    !name.ends_with("-script") || is_executable(value)
}

#[cfg(test)]
mod tests {
    use broker_fn::api::Group;

    use super::*;
    use crate::commands::join::config::tests::config;
    use crate::commands::join::server_command::ServerCommand;
    use crate::commands::join::test_files::{command, write};

    const ID: &str = "260c910e14307662916b7e2040a839ce262fd8c1";
    use crate::node::endpoint::Endpoint;

    fn words(launch: &Launch) -> Vec<String> {
        launch.words.iter().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    const LOGIN: [&str; 4] = ["--redis-username", "ops", "--redis-password", "s3 cret"];

    /// A Sentinel can't keep a password with a blank.
    const SENTINEL_LOGIN: [&str; 4] = ["--redis-username", "ops", "--redis-password", "s3#cret"];

    #[test]
    fn a_password_is_on_no_command_line() {
        let config = config("redis", &LOGIN, &["redis-server", "--port", "7000"]).unwrap();
        let follow = Start::Follow { master: Endpoint::new("10.0.0.7", 6379), is_up: true, ahead: vec![] };
        let follow = [InGroup { start: follow, group: None }];
        let launch = Launch::new(&config, &ServerSettings::default(), &follow, 0);
        let expected = "redis-server --port 7000 --daemonize no --replicaof 10.0.0.7 6379 -";
        assert_eq!(words(&launch).join(" "), expected);
        assert_eq!(launch.input.as_deref(), Some("masteruser ops\nmasterauth \"s3 cret\"\n"));
        let shown = launch.dry_run(&follow).join("\n");
        assert!(shown.contains("masterauth ***") && !shown.contains("cret\""), "{shown}");
    }

    #[test]
    fn a_sentinel_monitors_as_its_peers_do() {
        let flags = [&SENTINEL_LOGIN[..], &["--announce", "s1.example:26380"]].concat();
        let config = config("sentinel", &flags, &["redis-sentinel", "/nowhere/sentinel.conf"]).unwrap();
        let monitor = Start::Monitor {
            master: Endpoint::new("10.0.0.7", 6379),
            quorum: 2,
            options: vec![("down-after-milliseconds".into(), "5000".into())],
            id: Some(ID.into()),
        };
        let group: Group = "mymaster".parse().unwrap();
        let settings = ServerSettings::default();
        let monitor = [InGroup { start: monitor, group: Some(group.clone()) }];
        let launch = Launch::new(&config, &settings, &monitor, 0);
        assert_eq!(words(&launch), ["redis-sentinel", "/nowhere/sentinel.conf", "--daemonize", "no"]);
        assert_eq!(
            launch.file.as_ref().unwrap().1,
            [
                "sentinel resolve-hostnames yes",
                "sentinel announce-hostnames yes",
                "sentinel announce-ip s1.example",
                "sentinel announce-port 26380",
                &format!("sentinel myid {ID}"),
                "sentinel monitor mymaster 10.0.0.7 6379 2",
                "sentinel down-after-milliseconds mymaster 5000",
                "sentinel auth-user mymaster ops",
                "sentinel auth-pass mymaster \"s3#cret\"",
            ]
        );
        assert!(!launch.dry_run(&monitor).join("\n").contains("cret\""));
        let folder = tempfile::tempdir().unwrap();
        let file = write(&folder, "sentinel.conf", b"sentinel myid of-its-own\n");
        let settings_with_id = command(&["redis-sentinel", file.to_str().unwrap()]).settings().unwrap();
        let lines = Launch::new(&config, &settings_with_id, &monitor, 0).file.unwrap().1;
        assert!(lines.iter().all(|line| !line.contains("myid")), "{lines:?}");
        let master = Endpoint::new("r1.example", 6379);
        let named = Start::Monitor { master, quorum: 2, options: vec![], id: None };
        let lines = |start| {
            let is = [InGroup { start, group: Some(group.clone()) }];
            Launch::new(&config, &settings, &is, 0).file.unwrap().1
        };
        let lines = (lines(named), lines(Start::AsItIs));
        assert!(lines.0.contains(&"sentinel announce-hostnames yes".to_owned()), "{lines:?}");
        assert!(lines.1.is_empty(), "{lines:?}");
    }

    #[test]
    fn a_node_that_leads_or_follows_overrides_its_file() {
        let config = config("redis", &["--announce", "10.0.0.8:7000"], &["redis-server"]).unwrap();
        let announce = "--replica-announce-ip 10.0.0.8 --replica-announce-port 7000";
        let launch = |settings: &ServerSettings, start| {
            Launch::new(&config, settings, &[InGroup { start, group: None }], 0)
        };
        let settings = config.command.settings().unwrap();
        for decision in [Start::Lead, Start::Alone] {
            assert!(words(&launch(&settings, decision)).join(" ").ends_with(announce));
        }
        // It takes precedence over any `replicaof` in the server's file.
        let followed = ServerCommand::new(
            ["redis-server", "--replicaof", "10.0.0.9", "6379"].map(OsString::from).into(),
        );
        let lead = launch(&followed.settings().unwrap(), Start::Lead);
        assert!(words(&lead).join(" ").ends_with(&format!("{announce} --replicaof {HELD_MASTER} 0")));
        let starts = [InGroup { start: Start::Lead, group: None }];
        assert!(lead.dry_run(&starts).join("\n").contains("REPLICAOF NO ONE"));
    }

    #[test]
    fn a_script_of_the_other_sentinels_is_taken_over_where_it_can_be_run() {
        for name in ["notification-script", "client-reconfig-script"] {
            assert!(is_usable_here(name, "/bin/sh"));
            assert!(!is_usable_here(name, "/nowhere/notify.sh"));
            assert!(!is_usable_here(name, "/"), "a folder");
        }
        assert!(is_usable_here("down-after-milliseconds", "5000"));
    }
}
