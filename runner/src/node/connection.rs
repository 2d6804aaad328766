//! Connections to Redis servers and Sentinels: one a node, kept and shared by everything that the runner asks of it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use broker_fn::api::Kind;
use ipnet::IpNet;
use redis::aio::{MultiplexedConnection, PubSub, PubSubStream};
use redis::{AsyncConnectionConfig, Pipeline, RedisConnectionInfo, RedisError};
use rustls::ClientConfig;

use super::command::{Command, command};
use super::endpoint::Endpoint;
use super::reply::{Reply, ServerError, into_reply};
use super::secret::{Login, Other, Secret};
use super::users::DEFAULT;
use super::wire::{self, Guarded, Odd, Oddity};

/// Who watches what goes over the wire.
pub trait Observer: fmt::Debug + Send + Sync {
    /// A pipeline is about to be sent. What this returns comes back with the answer.
    fn begins(&self) -> Begun;

    /// A node has answered a whole pipeline.
    fn answered(&self, answer: &Answer<'_>, begun: &Begun);

    /// A node has not.
    fn lost(&self, kind: Kind, node: &Endpoint, error: &ConnectionError);
}

/// Nobody watches: what is asked all the time would hide all else.
#[derive(Debug)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn begins(&self) -> Begun {
        Begun { at: Instant::now(), place: 0 }
    }

    fn answered(&self, _: &Answer<'_>, _: &Begun) {}

    fn lost(&self, _: Kind, _: &Endpoint, _: &ConnectionError) {}
}

/// When an exchange with a node began.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Begun {
    pub at: Instant,
    /// How many round trips had followed each other by then, this one counted.
    pub place: u32,
}

#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    pub kind: Kind,
    pub node: &'a Endpoint,
    pub commands: &'a [Command],
    /// One for each command.
    pub replies: &'a [Reply],
    /// Whether the commands were only gone through, and not executed.
    pub is_rehearsal: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// Nobody listens, the network is in between, or the connection broke.
    #[error("{0}")]
    Unreachable(String),
    /// It took longer than a command may.
    #[error("no answer within {}{}", humantime::format_duration(*.after), if *.tls { "; does this port use TLS?" } else { "" })]
    TimedOut {
        after: Duration,
        /// Whether TLS was used: a server that does not speak it waits for more.
        tls: bool,
    },
    /// The server wants to know who we are, or does not want us.
    #[error("{0}")]
    Denied(ServerError),
    /// The two sides do not agree on TLS.
    #[error("{0}")]
    Tls(String),
    /// The operator does not allow to connect there. No attempt was made.
    #[error("{0} is not in any `--allow` network")]
    NotAllowed(IpAddr),
    /// Whatever listens there does not speak the Redis protocol.
    #[error("{0}")]
    NotRedis(String),
}

/// How nodes of one kind are reached.
#[derive(Debug, Clone)]
pub struct Access {
    pub kind: Kind,
    /// Who we say we are.
    pub login: Option<Login>,
    /// Another password of the same user, where there is one.
    pub other: Option<Other>,
    pub tls: Option<Arc<ClientConfig>>,
    /// The networks that may be connected to; all, where there are none.
    pub allow: Vec<IpNet>,
    /// No connection attempt and no command takes longer.
    pub command_timeout: Duration,
    /// The commands that these nodes know by another name (`rename-command`): the usual one in upper case, and theirs.
    pub renamed: BTreeMap<String, String>,
}

impl Access {
    /// The user that these nodes know us as.
    pub fn user(&self) -> &str {
        self.login.as_ref().and_then(|login| login.username.as_deref()).unwrap_or(DEFAULT)
    }

    /// The login as it is now: the file that its password is from may hold another one by now.
    pub fn login_now(&self) -> Option<Login> {
        let mut login = self.login.clone()?;
        if let Some(password) = self.other.as_ref().and_then(Other::password) {
            login.password = password;
        }
        Some(login)
    }
}

/// The passwords to log in with, until one is accepted.
#[derive(Debug, Default)]
struct Attempts<'a> {
    username: Option<&'a str>,
    /// The last one is the next.
    left: Vec<Secret>,
    /// Read only if it is needed.
    other: Option<&'a Other>,
    tried: Option<Secret>,
}

impl Attempts<'_> {
    /// The command that logs in with the next password.
    fn next(&mut self) -> Option<redis::Cmd> {
        let password = self.left.pop()?;
        let mut auth = redis::cmd("AUTH");
        auth.arg(self.username).arg(password.reveal());
        self.tried = Some(password);
        Some(auth)
    }

    /// Goes on to the next password that differs.
    ///
    /// # Errors
    ///
    /// The server's, if no password is left or none would help.
    fn refused(&mut self, error: ServerError) -> Result<(), ConnectionError> {
        let tried = self.tried.as_ref();
        self.left.retain(|left| Some(left) != tried);
        if self.left.is_empty() {
            let other = self.other.take().and_then(Other::password).filter(|other| Some(other) != tried);
            self.left.extend(other);
        }
        if error.code != "WRONGPASS" || self.left.is_empty() {
            return Err(ConnectionError::Denied(error));
        }
        Ok(())
    }
}

/// The connections of one run to the nodes of one kind.
#[derive(Debug)]
pub struct Connections {
    access: Access,
    /// The password that was accepted last, where it is not the first one.
    accepted: Mutex<Option<Secret>>,
    open: Mutex<HashMap<Endpoint, Slot>>,
    observer: Arc<dyn Observer>,
}

/// The connection to one node. Whoever opens it holds the lock meanwhile, so that all others wait for this one instead of
/// opening their own.
type Slot = Arc<tokio::sync::Mutex<Option<Open>>>;

/// An open connection, and what was odd about what came over it.
#[derive(Debug, Clone)]
struct Open {
    connection: MultiplexedConnection,
    oddity: Oddity,
}

impl Connections {
    #[must_use]
    pub fn new(access: Access, observer: Arc<dyn Observer>) -> Self {
        Self { access, accepted: Mutex::default(), open: Mutex::default(), observer }
    }

    /// Connections of their own to the same nodes: what waits for its answer on one of the others does not hold these up.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self::new(self.access.clone(), Arc::clone(&self.observer))
    }

    #[must_use]
    pub fn kind(&self) -> Kind {
        self.access.kind
    }

    pub fn access(&self) -> &Access {
        &self.access
    }

    #[must_use]
    pub fn use_tls(&self) -> bool {
        self.access.tls.is_some()
    }

    /// Sends commands as one pipeline and reads one reply for each.
    ///
    /// # Errors
    ///
    /// When the node can't be reached or stops answering. An error that the server sends is a [`Reply`].
    pub async fn send(&self, node: &Endpoint, commands: &[Command]) -> Result<Vec<Reply>, ConnectionError> {
        self.exchange(node, commands, false).await
    }

    /// The same for commands that the server only goes through, and does not execute.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub async fn rehearse(
        &self,
        node: &Endpoint,
        commands: &[Command],
    ) -> Result<Vec<Reply>, ConnectionError> {
        self.exchange(node, commands, true).await
    }

    /// Sends a command that is not answered where it is taken. It is where it is refused: so it goes over a connection of its
    /// own, on which no later answer can be taken for the one to another command.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub async fn send_unanswered(&self, node: &Endpoint, command: &Command) -> Result<(), ConnectionError> {
        let pipeline = self.pipeline(&[command.clone(), command!("PING")]);
        let begun = self.observer.begins();
        let sent = async {
            let mut open = self.connect(node).await?;
            // One answer: of the second command, or a refusal of the first.
            let replies = open.connection.send_packed_commands(&pipeline, 0, 1).await;
            replies.map_err(|error| self.connection_error(&error, &open.oddity))
        };
        let replies = match tokio::time::timeout(self.access.command_timeout, sent).await {
            Ok(replies) => replies.map_err(|error| self.lost(node, error))?,
            Err(_) => return Err(self.lost(node, self.timed_out())),
        };
        let replies: Vec<Reply> = replies.into_iter().map(into_reply).collect();
        let commands = std::slice::from_ref(command);
        let answer = Answer { kind: self.kind(), node, commands, replies: &replies, is_rehearsal: false };
        self.observer.answered(&answer, &begun);
        Ok(())
    }

    /// The messages on a channel, over a connection of its own, which is named so that others can tell whose it is.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send); also where the server lets us neither name it nor subscribe.
    pub async fn listen(
        &self,
        node: &Endpoint,
        name: &str,
        channel: &str,
    ) -> Result<PubSubStream, ConnectionError> {
        let subscribed = async {
            let (mut stream, oddity) = self.stream(node).await?;
            // The library has no way to name a connection before it subscribes.
            let named = |usual: &str| self.access.renamed.get(usual).map_or(usual, String::as_str).to_owned();
            let mut set_name = redis::cmd(&named("CLIENT"));
            set_name.arg("SETNAME").arg(name);
            let unreachable = |error: std::io::Error| ConnectionError::Unreachable(error.to_string());
            let mut attempts = self.attempts();
            while let Some(auth) = attempts.next() {
                let line = wire::ask_one_line(&mut stream, &auth.get_packed_command()).await;
                match line.map_err(unreachable)?.strip_prefix('-') {
                    Some(error) => attempts.refused(ServerError::parse(error))?,
                    None => break,
                }
            }
            self.has_accepted(attempts);
            // Refused here, it would be taken for the end of the connection.
            let line = wire::ask_one_line(&mut stream, &set_name.get_packed_command()).await;
            if let Some(error) = line.map_err(unreachable)?.strip_prefix('-') {
                return Err(ConnectionError::Denied(ServerError::parse(error)));
            }
            let settings = RedisConnectionInfo::default().set_skip_set_lib_name();
            let subscribed = async {
                let mut pubsub = PubSub::new(&settings, stream).await?;
                pubsub.subscribe(channel).await?;
                Ok(pubsub.into_on_message())
            };
            subscribed.await.map_err(|error| self.connection_error(&error, &oddity))
        };
        match tokio::time::timeout(self.access.command_timeout, subscribed).await {
            Ok(subscribed) => subscribed,
            Err(_) => Err(self.timed_out()),
        }
    }

    /// The commands, by the names that these nodes know them by.
    fn pipeline(&self, commands: &[Command]) -> Pipeline {
        let mut pipeline = Pipeline::with_capacity(commands.len());
        for command in commands {
            let (name, arguments) = command.words().split_first().expect("a command has at least its name");
            let name = self.access.renamed.get(&name.to_ascii_uppercase()).unwrap_or(name);
            pipeline.cmd(name).arg(arguments);
        }
        pipeline
    }

    async fn exchange(
        &self,
        node: &Endpoint,
        commands: &[Command],
        is_rehearsal: bool,
    ) -> Result<Vec<Reply>, ConnectionError> {
        let pipeline = self.pipeline(commands);
        let begun = self.observer.begins();
        let exchanged = async {
            let (mut open, kept) = self.connection(node).await?;
            match open.connection.send_packed_commands(&pipeline, 0, commands.len()).await {
                Err(error) if !kept || open.oddity.get().is_some() => {
                    return Err(self.connection_error(&error, &open.oddity));
                }
                // A connection that was idle may have been closed by the server or by the network in between: that says
                // nothing of the node. What may have been sent twice is safe to be: each of our commands is.
                Err(_) => self.forget(node),
                Ok(replies) => return Ok(replies),
            }
            let (mut open, _) = self.connection(node).await?;
            let replies = open.connection.send_packed_commands(&pipeline, 0, commands.len()).await;
            replies.map_err(|error| self.connection_error(&error, &open.oddity))
        };
        let replies = match tokio::time::timeout(self.access.command_timeout, exchanged).await {
            Ok(Ok(replies)) => replies,
            Ok(Err(error)) => {
                self.forget(node);
                return Err(self.lost(node, error));
            }
            Err(_) => {
                self.forget(node);
                return Err(self.lost(node, self.timed_out()));
            }
        };
        let replies: Vec<Reply> = replies.into_iter().map(into_reply).collect();
        let answer = Answer { kind: self.kind(), node, commands, replies: &replies, is_rehearsal };
        self.observer.answered(&answer, &begun);
        Ok(replies)
    }

    /// Opens a connection without asking anything, so that it is there when it is needed.
    pub async fn open(&self, node: &Endpoint) {
        // Whoever asks this node next meets the same error, and says so.
        match tokio::time::timeout(self.access.command_timeout, self.connection(node)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => drop(self.lost(node, error)),
            Err(_) => drop(self.lost(node, self.timed_out())),
        }
    }

    /// Reports that a node does not answer.
    fn lost(&self, node: &Endpoint, error: ConnectionError) -> ConnectionError {
        self.observer.lost(self.kind(), node, &error);
        error
    }

    /// The connection to a node, and whether it stood already.
    async fn connection(&self, node: &Endpoint) -> Result<(Open, bool), ConnectionError> {
        let slot = Arc::clone(self.open.lock().expect("no holder panics").entry(node.clone()).or_default());
        let mut slot = slot.lock().await;
        if let Some(open) = &*slot {
            return Ok((open.clone(), true));
        }
        let open = self.connect(node).await?;
        *slot = Some(open.clone());
        Ok((open, false))
    }

    async fn stream(&self, node: &Endpoint) -> Result<(Guarded, Oddity), ConnectionError> {
        self.check_allowed(node).await?;
        let stream = wire::connect(node, self.access.tls.as_ref()).await.map_err(|error| {
            let text = error.to_string();
            if is_about_tls(&text) { ConnectionError::Tls(text) } else { ConnectionError::Unreachable(text) }
        })?;
        Ok(Guarded::new(stream))
    }

    async fn connect(&self, node: &Endpoint) -> Result<Open, ConnectionError> {
        let (guarded, oddity) = self.stream(node).await?;
        let settings = RedisConnectionInfo::default().set_skip_set_lib_name();
        // The timeouts are around each use, so that they also bound what comes before and after the command.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connected = MultiplexedConnection::new_with_config(&settings, guarded, config).await;
        let (mut connection, driver) = connected.map_err(|error| self.connection_error(&error, &oddity))?;
        // It ends with the last clone of the connection.
        tokio::spawn(driver);
        // Not left to the library, which drops the server's reason for refusing.
        let mut attempts = self.attempts();
        while let Some(auth) = attempts.next() {
            let reply = connection.send_packed_command(&auth).await;
            match into_reply(reply.map_err(|error| self.connection_error(&error, &oddity))?) {
                Err(error) => attempts.refused(error)?,
                Ok(_) => break,
            }
        }
        self.has_accepted(attempts);
        Ok(Open { connection, oddity })
    }

    /// The passwords to log in with, the one that was accepted last first.
    fn attempts(&self) -> Attempts<'_> {
        let Some(login) = &self.access.login else { return Attempts::default() };
        let accepted = self.accepted.lock().expect("no holder panics").clone();
        let left = accepted.into_iter().chain([login.password.clone()]).rev().collect();
        Attempts { username: login.username.as_deref(), left, other: self.access.other.as_ref(), tried: None }
    }

    fn has_accepted(&self, attempts: Attempts<'_>) {
        let first = self.access.login.as_ref().map(|login| &login.password);
        let accepted = attempts.tried.filter(|tried| Some(tried) != first);
        *self.accepted.lock().expect("no holder panics") = accepted;
    }

    /// Whoever can register an address could otherwise make the runner connect anywhere.
    async fn check_allowed(&self, node: &Endpoint) -> Result<(), ConnectionError> {
        if self.access.allow.is_empty() {
            return Ok(());
        }
        let addresses = tokio::net::lookup_host((node.host.as_str(), node.port));
        for address in addresses.await.map_err(|error| ConnectionError::Unreachable(error.to_string()))? {
            let ip = address.ip().to_canonical();
            if !self.access.allow.iter().any(|network| network.contains(&ip)) {
                return Err(ConnectionError::NotAllowed(ip));
            }
        }
        Ok(())
    }

    fn connection_error(&self, error: &RedisError, oddity: &Oddity) -> ConnectionError {
        match oddity.get() {
            Some(Odd::Refusal(line)) => return ConnectionError::Denied(ServerError::parse(&line)),
            Some(Odd::Endless) => {
                return ConnectionError::NotRedis(
                    "does not speak the Redis protocol, or has more than 30,000 subscribers: its answer \
                     is longer than 8 MiB"
                        .into(),
                );
            }
            Some(Odd::NotRedis(line)) => return self.not_redis(&line),
            None => {}
        }
        if error.is_timeout() {
            return self.timed_out();
        }
        let text = error.to_string();
        match (error.kind(), error.code()) {
            (redis::ErrorKind::Parse, _) => self.not_redis(""),
            (redis::ErrorKind::Io, _) if is_about_tls(&text) => ConnectionError::Tls(text),
            (_, Some(code)) => ConnectionError::Denied(ServerError {
                code: code.to_owned(),
                detail: error.detail().unwrap_or_default().to_owned(),
            }),
            (_, None) => ConnectionError::Unreachable(text),
        }
    }

    fn not_redis(&self, line: &str) -> ConnectionError {
        let mut what = "does not speak the Redis protocol".to_owned();
        if !line.is_empty() {
            what += &format!(": answered `{line}`");
        } else if !self.use_tls() {
            what += "; this port may use TLS";
        }
        ConnectionError::NotRedis(what)
    }

    fn timed_out(&self) -> ConnectionError {
        ConnectionError::TimedOut { after: self.access.command_timeout, tls: self.use_tls() }
    }

    /// Opens a new connection the next time.
    pub fn forget(&self, node: &Endpoint) {
        self.open.lock().expect("no holder panics").remove(node);
    }

    /// The user that these nodes know us as.
    pub fn user(&self) -> &str {
        self.access.user()
    }
}

/// Whether the two sides disagree on TLS, rather than that one of them is gone in the middle of it. rustls' errors reach
/// us as text only.
fn is_about_tls(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["certificate", "fatal alert", "corrupt message", "unknownca"].iter().any(|word| text.contains(word))
}
