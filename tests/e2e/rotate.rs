//! `rotate`: the password of an ACL user changes, and no client or node is locked out.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use e2e::{Broker, Lab, Ledger, Node, NodeBuilder, Ran, Runner, Sent, System, eventually, scenario};
use futures::future::try_join_all;

use crate::failover::Client;
use crate::join::master;
use crate::output::document;
use crate::support::{LIMIT, expect_code, run, sample, sweep, tried, until_held};

const OLD: &str = "0ld-s3cret";
const NEW: &str = "n3w-s3cret";

/// How the servers know the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Users {
    /// `requirepass`: the user `default`.
    Requirepass,
    /// An ACL user in the configuration file.
    Config,
    /// An ACL user in an ACL file.
    AclFile,
    /// `requirepass`, and the user `default` in an ACL file. The file takes precedence at the next start.
    Both,
}

impl Users {
    fn name(self) -> &'static str {
        match self {
            Self::Requirepass | Self::Both => "default",
            Self::Config | Self::AclFile => "ops",
        }
    }

    fn of(self, node: NodeBuilder) -> Result<NodeBuilder> {
        Ok(match self {
            Self::Requirepass => node.admin().config(format!("requirepass {OLD}")),
            Self::Config => node.admin().config(format!("user ops on >{OLD} allkeys allchannels +@all")),
            Self::AclFile | Self::Both => {
                let file = node.dir().join("users.acl");
                fs::create_dir_all(node.dir())?;
                let user = format!("user {} on >{OLD} allkeys allchannels +@all", self.name());
                fs::write(&file, format!("{}\n{user}\n", NodeBuilder::ADMIN_USER))?;
                let node = node.admin_elsewhere().config(format!("aclfile {}", file.display()));
                if self == Self::Both { node.config(format!("requirepass {OLD}")) } else { node }
            }
        })
    }
}

impl std::fmt::Display for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Files that hold the two passwords.
struct Files {
    old: PathBuf,
    new: PathBuf,
}

impl Files {
    fn new(lab: &Lab) -> Result<Self> {
        let files = Self { old: lab.dir().join("old-password"), new: lab.dir().join("new-password") };
        fs::write(&files.old, format!("{OLD}\n"))?;
        fs::write(&files.new, NEW)?;
        Ok(files)
    }
}

/// Puts a folder in the place of the node's file, so that not even root can write the file.
fn can_not_write_its_file(node: &Node) -> Result<()> {
    fs::remove_file(node.config_file())?;
    Ok(fs::create_dir(node.config_file())?)
}

/// Three Redis servers and three Sentinels, verified with the old password.
async fn standing(lab: &Lab, users: Users, of: impl Fn(NodeBuilder) -> NodeBuilder) -> Result<System> {
    let redis = (0..3).map(|_| Ok(of(users.of(lab.redis())?).start()));
    let redis = try_join_all(redis.collect::<Result<Vec<_>>>()?).await?;
    let sentinels = try_join_all((0..3).map(|_| of(lab.sentinel()).start())).await?;
    let system = System { broker: lab.broker(Broker::builder())?, redis, sentinels };
    system.register_all().await?;
    // The user `default` need not be named.
    let user = Some(users.name()).filter(|name| *name != "default");
    let flags: Vec<&str> = user.into_iter().flat_map(|name| ["--redis-username", name]).collect();
    let flags = [&flags[..], &["--redis-password", OLD]].concat();
    expect_code(&run(lab, &system.broker, &flags).await?, 0);
    Ok(system)
}

fn rotate(lab: &Lab, system: &System, users: Users, files: &Files, flags: &[&str]) -> Runner {
    let runner = lab.runner(["rotate", "--broker", &system.broker.url(), "--redis-username", users.name()]);
    let runner = runner.args(["--redis-password-file"]).args([&files.old]);
    runner.args(["--new-password-file"]).args([&files.new]).args(flags)
}

async fn rotated(lab: &Lab, system: &System, users: Users, files: &Files, flags: &[&str]) -> Result<Ran> {
    let ran = rotate(lab, system, users, files, flags).run(LIMIT).await?;
    for secret in [OLD, NEW] {
        assert!(!format!("{}{}", ran.stdout, ran.stderr).contains(secret), "{secret} is shown: {ran}");
    }
    Ok(ran)
}

/// Checks that every server accepts the new password and refuses the old password, also after every node was
/// restarted.
async fn expect_rotated(lab: &Lab, system: &System, users: Users) -> Result<()> {
    let url = system.broker.url();
    let verify = |password| {
        lab.runner([
            "verify",
            "--broker",
            &url,
            "--redis-username",
            users.name(),
            "--redis-password",
            password,
        ])
    };
    expect_code(&verify(NEW).run(LIMIT).await?, 0);
    for node in &system.redis {
        for (password, is_accepted) in [(OLD, false), (NEW, true)] {
            let answer = node.command(&["AUTH", users.name(), password]).await;
            assert_eq!(answer.is_ok(), is_accepted, "{node}: {password}: {answer:?}");
        }
        let login: Vec<String> = node.query(&["CONFIG", "GET", "masterauth"]).await?;
        assert_eq!(login[1], NEW, "{node}");
        if users.name() == "default" {
            let required: Vec<String> = node.query(&["CONFIG", "GET", "requirepass"]).await?;
            assert_eq!(required[1], NEW, "{node}");
        }
    }
    Ok(())
}

/// Restarts every node, and waits until the system is verified with the new password alone.
async fn expect_rotated_after_restarts(lab: &Lab, system: &System, users: Users) -> Result<()> {
    for node in system.sentinels.iter().chain(&system.redis[1..]).chain(&system.redis[..1]) {
        node.restart().await?;
    }
    let flags = ["--redis-username", users.name(), "--redis-password", NEW];
    expect_code(&run(lab, &system.broker, &flags).await?, 0);
    expect_rotated(lab, system, users).await
}

#[test]
fn clients_are_never_refused_and_keep_their_connections() {
    let all = [Users::Requirepass, Users::Config, Users::AclFile, Users::Both];
    sweep(&all, async |lab, &users| {
        let files = Files::new(lab)?;
        let system = standing(lab, users, |node| node).await?;
        let servers = system.redis.iter().map(|node| node.addr().to_string());
        let words = [users.name(), OLD, NEW].map(str::to_owned);
        let mut clients = Client::program("logins.py", words.into_iter().chain(servers))?;
        let mut expect = async |phase: &str| {
            let answer = clients.ask(phase).await?;
            for list in ["lost", "refused"] {
                ensure!(answer[list].as_array().is_some_and(Vec::is_empty), "{users}, {phase}: {answer}");
            }
            anyhow::Ok(())
        };
        expect("old").await?;
        let ran = rotated(lab, &system, users, &files, &["--keep-old", "--output", "json"]).await?;
        expect_code(&ran, 0);
        let document = document(&ran);
        assert_eq!(document["rotation"]["old_password"], "kept", "{ran}");
        let sentinels = document["rotation"]["sentinels"].as_array().context("a list")?;
        assert_eq!(sentinels.len(), 3, "{ran}");
        expect("both").await?;
        expect("new").await?;
        let ran = rotated(lab, &system, users, &files, &["--drop-old"]).await?;
        expect_code(&ran, 0);
        assert!(ran.stdout.contains("no server accepts the old password"), "{ran}");
        expect("end").await?;
        expect_rotated(lab, &system, users).await?;
        expect_rotated_after_restarts(lab, &system, users).await?;
        // The rotation is complete, so the run changes nothing.
        let ran = rotated(lab, &system, users, &files, &["--drop-old", "--output", "json"]).await?;
        expect_code(&ran, 0);
        let sent = document_steps(&ran);
        let is_written_again = |command: &String| {
            ["SENTINEL SET", "CONFIG REWRITE", "ACL SAVE"].iter().any(|start| command.starts_with(start))
        };
        ensure!(sent.iter().all(is_written_again), "{sent:?}");
        // A third password stays. If the old password is mistyped, `rotate` does not take the third password
        // for it.
        for node in &system.redis {
            node.command(&["ACL", "SETUSER", users.name(), ">th1rd-s3cret"]).await?;
        }
        let ran = rotated(lab, &system, users, &files, &["--drop-old"]).await?;
        expect_code(&ran, 2);
        ensure!(ran.stderr.contains("no server has the old password"), "{ran}");
        Ok(())
    });
}

fn document_steps(ran: &Ran) -> Vec<String> {
    let document = document(ran);
    let steps = document["steps"].as_array().cloned().unwrap_or_default();
    steps.iter().filter_map(|step| Some(step["command"].as_str()?.to_owned())).collect()
}

/// Whether a command changes something, or ends a transaction that does.
fn changes(sent: &Sent) -> bool {
    let starts = ["ACL SETUSER", "ACL SAVE", "CONFIG SET", "CONFIG REWRITE", "SENTINEL SET", "EXEC"];
    starts.iter().any(|command| sent.is(command))
}

/// The command at which the runner is killed.
struct Kill {
    users: Users,
    /// The number of the command, of those that change something, over all nodes.
    number: usize,
    /// Whether the node still gets the command.
    executed: bool,
}

impl std::fmt::Display for Kill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { users, number, executed } = self;
        write!(f, "{users}: killed {} change {number}", if *executed { "after" } else { "before" })
    }
}

#[test]
fn long_a_rotation_killed_at_any_command_is_completed_by_the_next() {
    let mut kills = Vec::new();
    for users in [Users::Requirepass, Users::AclFile] {
        let numbers = Mutex::new(BTreeSet::new());
        scenario(async |lab| {
            let ledger = Ledger::new();
            let files = Files::new(lab)?;
            let system = standing(lab, users, |node| node.behind(&ledger)).await?;
            let before = ledger.sent().len();
            expect_code(&rotated(lab, &system, users, &files, &["--drop-old"]).await?, 0);
            let sent: Vec<Sent> = ledger.sent().split_off(before).into_iter().filter(changes).collect();
            let write = sent.iter().position(|sent| sent.is("CONFIG REWRITE") || sent.is("ACL SAVE"));
            // Also kills the runner between a change and the command that writes the file.
            numbers.lock().unwrap().extend(sample(sent.len(), 25).chain([1 + write.context("a write")?]));
            expect_rotated(lab, &system, users).await
        });
        let kill = |number| [true, false].map(|executed| Kill { users, number, executed });
        kills.extend(numbers.into_inner().unwrap().into_iter().flat_map(kill));
    }
    sweep(&kills, async |lab, kill| {
        let ledger = Ledger::new();
        let files = Files::new(lab)?;
        let system = standing(lab, kill.users, |node| node.behind(&ledger)).await?;
        let (mut seen, number) = (0, kill.number);
        let mut held = ledger.hold(move |sent| {
            seen += usize::from(changes(sent));
            seen == number
        });
        let mut running = rotate(lab, &system, kill.users, &files, &["--drop-old"]).start()?;
        let sent = until_held(&mut running, &mut held).await?.context("it sends so many")?;
        println!("{kill}: {sent}");
        running.kill();
        if kill.executed {
            held.pass().await;
        }
        ledger.cut();
        expect_code(&rotated(lab, &system, kill.users, &files, &["--drop-old"]).await?, 0);
        expect_rotated(lab, &system, kill.users).await?;
        // What the killed run has changed is in the files too.
        expect_rotated_after_restarts(lab, &system, kill.users).await
    });
    tried(format_args!(
        "faults tried: a rotation killed at {} changes, {} runs",
        kills.len() / 2,
        kills.len()
    ));
}

#[test]
fn a_rotation_that_would_lock_a_client_out_changes_nothing() {
    scenario(async |lab| {
        let users = Users::Config;
        let files = Files::new(lab)?;
        let system = standing(lab, users, |node| node).await?;
        let first = &system.redis[0];
        let expect = async |flags: &[&str], code, says: &[&str]| {
            let ran = rotated(lab, &system, users, &files, flags).await?;
            expect_code(&ran, code);
            for text in says {
                ensure!(ran.stderr.contains(text), "{flags:?} does not print `{text}`: {ran}");
            }
            for node in &system.redis {
                ensure!(
                    node.command(&["AUTH", "ops", NEW]).await.is_err(),
                    "{node} has the new password: {ran}"
                );
            }
            anyhow::Ok(())
        };
        let at = first.addr().to_string();
        expect(&[], 2, &["--keep-old", "--drop-old", "terminal"]).await?;
        expect(&["--drop-old", "--user", "nobody"], 2, &["--old-password-file", "`nobody`"]).await?;
        let old = files.old.display().to_string();
        expect(
            &["--drop-old", "--user", "nobody", "--old-password-file", &old],
            2,
            &["no ACL user `nobody`"],
        )
        .await?;
        expect(
            &["--drop-old", "--old-password-file", &files.new.display().to_string()],
            2,
            &["old password"],
        )
        .await?;
        fs::write(&files.new, "two words")?;
        expect(&["--drop-old"], 2, &["a blank", "would not start again"]).await?;
        fs::write(&files.new, NEW)?;
        // `rotate` names a missing right.
        first.command(&["ACL", "SETUSER", "ops", "-acl|setuser"]).await?;
        expect(&["--drop-old"], 5, &[&at, "ACL SETUSER ops +acl|setuser"]).await?;
        first.command(&["ACL", "SETUSER", "ops", "+acl|setuser"]).await?;
        // After its next start, the server would have the old password again.
        can_not_write_its_file(first)?;
        expect(&["--drop-old"], 4, &[&at, "have the old password again", "--keep-old"]).await?;
        let ran = rotated(lab, &system, users, &files, &["--keep-old"]).await?;
        expect_code(&ran, 0);
        ensure!(ran.stderr.contains(&format!("{at} can't write its configuration")), "{ran}");
        // A user without a password would need a password afterwards.
        for node in &system.redis {
            node.command(&["ACL", "SETUSER", "ops", "resetpass", "nopass"]).await?;
        }
        let ran = rotated(lab, &system, users, &files, &["--drop-old"]).await?;
        expect_code(&ran, 2);
        ensure!(ran.stderr.contains("would lock out all clients"), "{ran}");
        Ok(())
    });
}

#[test]
fn the_settings_of_a_server_with_an_acl_file_have_to_be_writable() {
    scenario(async |lab| {
        let users = Users::AclFile;
        let files = Files::new(lab)?;
        let system = standing(lab, users, |node| node).await?;
        let first = &system.redis[0];
        can_not_write_its_file(first)?;
        expect_code(&rotated(lab, &system, users, &files, &["--keep-old"]).await?, 0);
        // Only the user's password is left to change, but `masterauth` is in no file yet.
        let ran = rotated(lab, &system, users, &files, &["--drop-old"]).await?;
        expect_code(&ran, 4);
        ensure!(ran.stderr.contains(&format!("{} can't write", first.addr())), "{ran}");
        ensure!(first.command(&["AUTH", "ops", OLD]).await.is_ok(), "{ran}");
        Ok(())
    });
}

#[test]
fn the_user_of_the_replicas_alone_is_rotated() {
    scenario(async |lab| {
        let files = Files::new(lab)?;
        let redis = || {
            let node = lab.redis().admin().config("user ops on >0ps-s3cret ~* &* +@all");
            node.config(format!("user replica on >{OLD} +ping +psync +replconf")).start()
        };
        let system = System {
            broker: lab.broker(Broker::builder())?,
            redis: try_join_all((0..2).map(|_| redis())).await?,
            sentinels: try_join_all((0..3).map(|_| lab.sentinel().start())).await?,
        };
        system.register_all().await?;
        let ops = ["--redis-username", "ops", "--redis-password", "0ps-s3cret"];
        let replica = |password| ["--replication-username", "replica", "--replication-password", password];
        expect_code(&run(lab, &system.broker, &[ops, replica(OLD)].concat()).await?, 0);
        let url = system.broker.url();
        let runner = lab.runner(["rotate", "--broker", &url, "--user", "replica", "--drop-old"]).args(ops);
        let runner = runner.args(["--old-password-file"]).args([&files.old]);
        let ran =
            runner.args(["--output", "json", "--new-password-file"]).args([&files.new]).run(LIMIT).await?;
        expect_code(&ran, 0);
        assert_eq!(document(&ran)["rotation"]["sentinels"], serde_json::json!([]), "{ran}");
        for node in &system.redis {
            ensure!(
                node.command(&["AUTH", "replica", OLD]).await.is_err(),
                "{node} accepts the old password"
            );
            let login: Vec<String> = node.query(&["CONFIG", "GET", "masterauth"]).await?;
            assert_eq!(login[1], NEW, "{node}");
        }
        let verify = lab.runner(["verify", "--broker", &url]).args(ops).args(replica(NEW));
        expect_code(&verify.run(LIMIT).await?, 0);
        Ok(())
    });
}

#[test]
fn on_a_terminal_it_asks_before_the_old_password_is_dropped() {
    scenario(async |lab| {
        let users = Users::Requirepass;
        let files = Files::new(lab)?;
        let system = standing(lab, users, |node| node).await?;
        let url = system.broker.url();
        let [old, new] = [&files.old, &files.new].map(|file| file.display().to_string());
        let args = ["rotate", "--broker", &url, "--redis-password-file", &old, "--new-password-file", &new];
        for (answer, kept) in [("no\r", true), ("yes\r", false)] {
            let mut terminal = lab.terminal(args, &[], (40, 120), "")?;
            terminal.until("type `yes`", LIMIT).await?;
            let old_works = async || system.redis[0].command(&["AUTH", "default", OLD]).await.is_ok();
            ensure!(old_works().await, "{}", terminal.text());
            if !kept {
                // Simulates a restart with the old password while the command waits for its answer.
                let old = ["CONFIG", "SET", "requirepass", OLD, "masterauth", OLD];
                system.redis[1].command(&old).await?;
            }
            terminal.keys(answer).await?;
            let status = terminal.ended(LIMIT).await?;
            ensure!(status.success(), "{status}: {}", terminal.text());
            assert_eq!(old_works().await, kept, "{}", terminal.text());
        }
        expect_rotated(lab, &system, users).await
    });
}

#[test]
fn a_join_reads_its_password_file_again() {
    scenario(async |lab| {
        let files = Files::new(lab)?;
        let broker = lab.broker(Broker::builder())?;
        let file = files.old.display().to_string();
        let flags = ["--broker", &broker.url(), "--redis-password-file", &file].map(str::to_owned);
        let redis = |_| Users::Requirepass.of(lab.redis())?.joining(&flags).launch();
        let system = System {
            redis: (0..2).map(redis).collect::<Result<_>>()?,
            sentinels: (0..3).map(|_| lab.sentinel().joining(&flags).launch()).collect::<Result<_>>()?,
            broker,
        };
        expect_code(
            &run(lab, &system.broker, &["--redis-password-file", &files.old.display().to_string()]).await?,
            0,
        );
        // The file with which the nodes were started gets the new password. The runner has a copy of the old
        // file.
        let kept = Files { old: lab.dir().join("kept"), new: files.new.clone() };
        fs::copy(&files.old, &kept.old)?;
        let users = Users::Requirepass;
        expect_code(&rotated(lab, &system, users, &kept, &["--keep-old"]).await?, 0);
        fs::copy(&files.new, &files.old)?;
        expect_code(&rotated(lab, &system, users, &kept, &["--drop-old"]).await?, 0);
        for node in &system.redis {
            node.command(&["CLIENT", "KILL", "USER", "default", "SKIPME", "yes"]).await?;
        }
        // The `join` of the master hands over, so it has to log in on all nodes.
        let url = system.broker.url();
        let verify = || lab.runner(["verify", "--broker", &url, "--redis-password", NEW]);
        until_verified(verify).await?;
        // Either server may have registered first.
        let named = master(&system).await?;
        let (old, other) = (&system.redis[named], &system.redis[1 - named]);
        old.terminate(LIMIT).await?;
        let role = other.info("replication").await?;
        ensure!(role["role"] == "master", "{role:?}: {}", old.log());
        old.relaunch()?;
        until_verified(verify).await
    });
}

async fn until_verified(verify: impl Fn() -> Runner) -> Result<()> {
    eventually(LIMIT, async || {
        let ran = verify().run(LIMIT).await?;
        ensure!(ran.code == Some(0), "{ran}");
        Ok(())
    })
    .await
}
