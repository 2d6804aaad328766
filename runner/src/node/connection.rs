//! Connections to Redis servers and Sentinels: one per node, kept open and shared by all commands that the
//! runner sends to the node.

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
use super::secret::{DEFAULT, Login, OtherPassword, Secret};
use super::wire::{self, Guarded, Oddity, Unexpected};

/// Watches the commands and replies that are exchanged with nodes.
pub trait Observer: fmt::Debug + Send + Sync {
    /// Called before a pipeline is sent. The returned value is passed on with the answer.
    fn begins(&self) -> Begun;

    /// Called after a node has answered a whole pipeline.
    fn answered(&self, answer: &PipelineAnswer<'_>, begun: &Begun);

    /// Called if a node has not answered.
    fn lost(&self, kind: Kind, node: &Endpoint, error: &ConnectionError);
}

/// Watches nothing: commands that are sent all the time would hide everything else.
#[derive(Debug)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn begins(&self) -> Begun {
        Begun { at: Instant::now(), place: 0 }
    }

    fn answered(&self, _: &PipelineAnswer<'_>, _: &Begun) {}

    fn lost(&self, _: Kind, _: &Endpoint, _: &ConnectionError) {}
}

/// When an exchange with a node began.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Begun {
    pub at: Instant,
    /// How many round trips had followed each other by then, including this one.
    pub place: u32,
}

#[derive(Debug, Clone, Copy)]
pub struct PipelineAnswer<'a> {
    pub kind: Kind,
    pub node: &'a Endpoint,
    pub commands: &'a [Command],
    /// One reply per command.
    pub replies: &'a [Reply],
    /// Whether the commands were only rehearsed, not executed.
    pub is_rehearsal: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// Nothing listens there, the network is in between, or the connection broke.
    #[error("{0}")]
    Unreachable(String),
    /// The exchange took longer than the command timeout.
    #[error("no answer within {}{}", humantime::format_duration(*.after), if *.tls { "; does this port use TLS?" } else { "" })]
    TimedOut {
        after: Duration,
        /// Whether TLS was used. A server that does not speak TLS waits for more bytes.
        tls: bool,
    },
    /// The server asks for a login, or rejects ours.
    #[error("{0}")]
    Denied(ServerError),
    /// TLS could not be agreed on.
    #[error("{0}")]
    Tls(String),
    /// The operator does not allow connections to this address. None was attempted.
    #[error("{0} is not in any `--allow` network")]
    NotAllowed(IpAddr),
    /// What listens there does not speak the Redis protocol.
    #[error("{0}")]
    NotRedis(String),
}

/// How to reach the nodes of one kind.
#[derive(Debug, Clone)]
pub struct Access {
    pub kind: Kind,
    /// Our user and password.
    pub login: Option<Login>,
    /// A second password of the same user, or the file that may contain it.
    pub other: Option<OtherPassword>,
    pub tls: Option<Arc<ClientConfig>>,
    /// The networks to which connections are allowed. If there are none, all are allowed.
    pub allow: Vec<IpNet>,
    /// The longest time that a connection attempt or a command may take.
    pub command_timeout: Duration,
    /// The commands that these nodes know by another name (`rename-command`): the usual name in upper case,
    /// and the nodes' name.
    pub renamed: BTreeMap<String, String>,
}

impl Access {
    /// Our user on these nodes.
    pub fn user(&self) -> &str {
        self.login.as_ref().map_or(DEFAULT, Login::user)
    }

    /// The login with the current password: the password's file may contain a new one by now.
    pub fn login_now(&self) -> Option<Login> {
        let mut login = self.login.clone()?;
        if let Some(password) = self.other.as_ref().and_then(OtherPassword::password) {
            login.password = password;
        }
        Some(login)
    }
}

/// The passwords to log in with until one is accepted.
#[derive(Debug, Default)]
struct Attempts<'a> {
    username: Option<&'a str>,
    /// The last element is tried next.
    left: Vec<Secret>,
    /// Read only if the passwords in `left` are refused.
    other: Option<&'a OtherPassword>,
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

    /// Goes on to the next different password.
    ///
    /// # Errors
    ///
    /// The server's error, if no password is left or no password would help.
    fn refused(&mut self, error: ServerError) -> Result<(), ConnectionError> {
        let tried = self.tried.as_ref();
        self.left.retain(|left| Some(left) != tried);
        if self.left.is_empty() {
            let other =
                self.other.take().and_then(OtherPassword::password).filter(|other| Some(other) != tried);
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
    /// The password that was accepted last, if it is not the first one.
    accepted: Mutex<Option<Secret>>,
    open: Mutex<HashMap<Endpoint, Slot>>,
    observer: Arc<dyn Observer>,
}

/// The connection to one node. The task that opens it holds the lock, so other tasks wait for this connection
/// and do not open another one.
type Slot = Arc<tokio::sync::Mutex<Option<Open>>>;

/// An open connection, and the unexpected bytes that were received over it.
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

    /// Separate connections to the same nodes. A command that waits for its answer on one of `self` does not
    /// block these.
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

    /// Sends commands as one pipeline and reads one reply per command.
    ///
    /// # Errors
    ///
    /// If the node can't be reached or stops answering. An error that the server sends is a [`Reply`].
    pub async fn send(&self, node: &Endpoint, commands: &[Command]) -> Result<Vec<Reply>, ConnectionError> {
        self.exchange(node, commands, false).await
    }

    /// As [`send`](Self::send), for commands that the server does not execute.
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

    /// Sends a command to which there is no reply if it is accepted, but a reply if it is rejected. So the
    /// command gets a separate connection, and its reply can't be mistaken for the reply to another command.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub async fn send_unanswered(&self, node: &Endpoint, command: &Command) -> Result<(), ConnectionError> {
        let pipeline = self.pipeline(&[command.clone(), command!("PING")]);
        let begun = self.observer.begins();
        let sent = async {
            let mut open = self.connect(node).await?;
            // One reply: to the second command, or a rejection of the first.
            let replies = open.connection.send_packed_commands(&pipeline, 0, 1).await;
            replies.map_err(|error| self.connection_error(&error, &open.oddity))
        };
        let replies = match tokio::time::timeout(self.access.command_timeout, sent).await {
            Ok(replies) => replies.map_err(|error| self.lost(node, error))?,
            Err(_) => return Err(self.lost(node, self.timed_out())),
        };
        let replies: Vec<Reply> = replies.into_iter().map(into_reply).collect();
        let commands = std::slice::from_ref(command);
        let answer =
            PipelineAnswer { kind: self.kind(), node, commands, replies: &replies, is_rehearsal: false };
        self.observer.answered(&answer, &begun);
        Ok(())
    }

    /// The messages on a channel, over a separate connection. The connection's name identifies its owner.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send); also if the server does not let us name the connection or subscribe.
    pub async fn listen(
        &self,
        node: &Endpoint,
        name: &str,
        channel: &str,
    ) -> Result<PubSubStream, ConnectionError> {
        let subscribed = async {
            let (mut stream, oddity) = self.stream(node).await?;
            // The library can't name a connection before it subscribes.
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
            // The name is set here because the library treats a rejection as the end of the connection.
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

    /// The commands, with the names that these nodes know them by.
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
                // The server or the network may have closed an idle connection, which proves nothing about
                // the node. Sending the commands again is safe for every command of this program.
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
        let answer = PipelineAnswer { kind: self.kind(), node, commands, replies: &replies, is_rehearsal };
        self.observer.answered(&answer, &begun);
        Ok(replies)
    }

    /// Opens a connection and sends no command, so that the connection is open when it is needed.
    pub async fn open(&self, node: &Endpoint) {
        // The next command to this node meets the same error and returns it.
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

    /// The connection to a node, and whether it was already open.
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
        // Every caller sets a timeout, which covers the whole exchange.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connected = MultiplexedConnection::new_with_config(&settings, guarded, config).await;
        let (mut connection, driver) = connected.map_err(|error| self.connection_error(&error, &oddity))?;
        // The driver ends with the last clone of the connection.
        tokio::spawn(driver);
        // The library could log in, but it drops the server's reason for a refusal.
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

    /// The passwords to log in with. The one that was accepted last is tried first.
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

    /// Without this check, any client that can register could make the runner connect to any address.
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
            Some(Unexpected::Refusal(line)) => return ConnectionError::Denied(ServerError::parse(&line)),
            Some(Unexpected::Endless) => {
                return ConnectionError::NotRedis(
                    "does not speak the Redis protocol, or has more than 30,000 subscribers: its answer \
                     is longer than 8 MiB"
                        .into(),
                );
            }
            Some(Unexpected::NotRedis(line)) => return self.not_redis(&line),
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

    /// Drops the connection, so that the next command opens a new one.
    pub fn forget(&self, node: &Endpoint) {
        self.open.lock().expect("no holder panics").remove(node);
    }

    /// Our user on these nodes.
    pub fn user(&self) -> &str {
        self.access.user()
    }
}

/// Whether the error is a disagreement about TLS, and not a connection that broke. rustls' errors reach us
/// only as text.
fn is_about_tls(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["certificate", "fatal alert", "corrupt message", "unknownca"].iter().any(|word| text.contains(word))
}
