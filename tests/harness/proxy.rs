//! A TCP proxy in front of a node, for faults at an exact command.
//!
//! A node that is [behind](crate::NodeBuilder::behind) a proxy registers at the proxy's address, and
//! announces its own to the other nodes. So the nodes talk to each other directly, and only the runner goes
//! through the proxies. All proxies of a system share a [`Ledger`], which records the order of the runner's
//! commands over all nodes.
//!
//! A command is forwarded as soon as the previous command on its connection has been answered. A client that
//! sends a pipeline does not notice. A command that was let through has been executed when its reply is
//! there.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};

/// Commands that a client library sends before the client's own commands. It is passed on, and neither
/// recorded nor held.
const HANDSHAKE: [&str; 4] = ["AUTH", "CLIENT SETINFO", "HELLO", "SELECT"];

/// A command without a reply, except in a transaction, in which the node queues it.
const UNANSWERED: &str = "REPLCONF GETACK";

/// A command that arrived at a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The command's place among all commands of the ledger, from 1.
    pub number: usize,
    /// The name of the node to which it was sent, such as `redis-1`.
    pub node: String,
    /// The command and its arguments.
    pub words: Vec<String>,
}

impl Sent {
    /// Whether the command begins with these words, such as `SENTINEL MONITOR`.
    #[must_use]
    pub fn is(&self, command: &str) -> bool {
        begins_with(&self.words, command)
    }
}

impl Sent {
    /// Whether the command makes a server a replica. For a rehearsal, the runner sends the same command with
    /// `no-port` as the port.
    #[must_use]
    pub fn attaches(&self) -> bool {
        self.is("REPLICAOF") && self.words.get(2).is_some_and(|port| port != "no-port")
    }
}

fn begins_with(words: &[String], command: &str) -> bool {
    let mut words = words.iter();
    command.split(' ').all(|expected| words.next().is_some_and(|word| word.eq_ignore_ascii_case(expected)))
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, `{}` to {}", self.number, self.words.join(" "), self.node)
    }
}

/// The order in which commands arrived at all proxies of a system, and a gate that can hold them.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Connections end when this changes.
    generation: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    sent: Vec<Sent>,
    gate: Gate,
}

type When = Box<dyn FnMut(&Sent) -> bool + Send>;

#[derive(Default)]
enum Gate {
    #[default]
    Open,
    /// Shuts at the first command for which the condition is true.
    Armed(When, oneshot::Sender<Sent>),
    /// Every command waits, in this order, until it gets a [`Pass`]. A command that gets none ends its
    /// connection.
    Shut(VecDeque<oneshot::Sender<Pass>>),
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Gate::Open => "open",
            Gate::Armed(..) => "armed",
            Gate::Shut(_) => "shut",
        })
    }
}

/// Lets one command through. The pass is dropped when the command has been answered.
struct Pass {
    _answered: Option<oneshot::Sender<()>>,
}

/// What happens to a command at the gate.
enum Arrival {
    Passes,
    Waits(oneshot::Receiver<Pass>),
}

impl Ledger {
    /// An empty ledger with an open gate.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), generation: watch::Sender::new(0) }))
    }

    /// Every command that arrived, in order.
    #[must_use]
    pub fn sent(&self) -> Vec<Sent> {
        self.state().sent.clone()
    }

    /// Shuts the gate at the next command for which `when` is true. That command and all commands after it,
    /// to any node, are held.
    ///
    /// Panics if the gate is shut already.
    pub fn hold(&self, when: impl FnMut(&Sent) -> bool + Send + 'static) -> Held {
        let (tell, reached) = oneshot::channel();
        let before = std::mem::replace(&mut self.state().gate, Gate::Armed(Box::new(when), tell));
        assert!(!matches!(before, Gate::Shut(_)), "the gate is shut");
        Held { ledger: self.clone(), reached }
    }

    /// Ends every connection once the forwarded commands are answered, drops the held commands, and opens the
    /// gate.
    pub fn cut(&self) {
        // When the gate is replaced, the held commands can't pass any more.
        self.state().gate = Gate::Open;
        self.0.generation.send_modify(|generation| *generation += 1);
    }

    fn arrive(&self, node: &str, words: Vec<String>) -> (Sent, Arrival) {
        let state = &mut *self.state();
        let sent = Sent { number: state.sent.len() + 1, node: node.to_owned(), words };
        state.sent.push(sent.clone());
        match std::mem::take(&mut state.gate) {
            Gate::Open => return (sent, Arrival::Passes),
            Gate::Armed(mut when, tell) => {
                if !when(&sent) {
                    state.gate = Gate::Armed(when, tell);
                    return (sent, Arrival::Passes);
                }
                // The command is held even if the test does not wait for it.
                let _ = tell.send(sent.clone());
                state.gate = Gate::Shut(VecDeque::new());
            }
            shut @ Gate::Shut(_) => state.gate = shut,
        }
        let (pass, waits) = oneshot::channel();
        if let Gate::Shut(waiting) = &mut state.gate {
            waiting.push_back(pass);
        }
        (sent, Arrival::Waits(waits))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("nothing panics while it holds this lock")
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

/// A gate that was armed to shut.
#[derive(Debug)]
pub struct Held {
    ledger: Ledger,
    reached: oneshot::Receiver<Sent>,
}

impl Held {
    /// Waits until the command has arrived and is held.
    pub async fn reached(&mut self) -> Result<Sent> {
        Ok((&mut self.reached).await?)
    }

    /// Lets the awaited command through, and waits until the node has answered it. Everything else stays
    /// held.
    pub async fn pass(&self) {
        let first = match &mut self.ledger.state().gate {
            Gate::Shut(waiting) => waiting.pop_front(),
            Gate::Open | Gate::Armed(..) => None,
        };
        let (answered, done) = oneshot::channel();
        if let Some(first) = first
            && first.send(Pass { _answered: Some(answered) }).is_ok()
        {
            // Ends when the sender is dropped.
            let _ = done.await;
        }
    }

    /// Opens the gate.
    pub fn release(self) {
        let gate = std::mem::take(&mut self.ledger.state().gate);
        if let Gate::Shut(waiting) = gate {
            for pass in waiting {
                // The command's connection may be gone.
                let _ = pass.send(Pass { _answered: None });
            }
        }
    }
}

/// What a proxy does to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Does not forward the command, and closes the connection.
    CutBefore,
    /// Forwards the command, and closes the connection when the node has answered, without passing on the
    /// answer.
    CutBeforeReply,
    /// Closes the connection after the command's reply.
    CutAfterReply,
    /// From this command on, forwards and answers nothing on any connection. New connections are accepted.
    Swallow,
}

/// A proxy that runs until this is dropped.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    line: Arc<Line>,
    task: AbortHandle,
}

/// What all connections through a proxy share.
struct Line {
    name: String,
    node: SocketAddr,
    from: Option<IpAddr>,
    ledger: Ledger,
    behaviour: Mutex<Behaviour>,
}

#[derive(Default)]
struct Behaviour {
    fault: Option<(When, Fault)>,
    swallows: bool,
    delay: (Duration, Duration),
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "to {} at {}", self.name, self.node)
    }
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1, and connects to the node from this address.
    pub async fn start(name: &str, node: SocketAddr, ledger: &Ledger, from: Option<IpAddr>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let line =
            Line { name: name.to_owned(), node, from, ledger: ledger.clone(), behaviour: Mutex::default() };
        let line = Arc::new(line);
        let task = tokio::spawn(accept(listener, Arc::clone(&line))).abort_handle();
        Ok(Self { addr, line, task })
    }

    /// The address on which it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Does this to the next command for which `when` is true.
    pub fn fault(&self, fault: Fault, when: impl FnMut(&Sent) -> bool + Send + 'static) {
        self.line.behaviour().fault = Some((Box::new(when), fault));
    }

    /// Forwards and answers nothing from now on.
    pub fn swallow(&self) {
        self.line.behaviour().swallows = true;
    }

    /// Forwards and answers again, on new connections.
    pub fn heal(&self) {
        self.line.behaviour().swallows = false;
    }

    /// Delays each command by the first duration, and each reply by the second.
    pub fn delay(&self, command: Duration, reply: Duration) {
        self.line.behaviour().delay = (command, reply);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Line {
    fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().expect("nothing panics while it holds this lock")
    }

    /// The fault for this command, if any.
    fn fault(&self, sent: &Sent) -> Option<Fault> {
        let behaviour = &mut *self.behaviour();
        let (when, fault) = behaviour.fault.as_mut()?;
        let fault = *fault;
        if !when(sent) {
            return None;
        }
        behaviour.fault = None;
        behaviour.swallows |= fault == Fault::Swallow;
        Some(fault)
    }

    async fn connect(&self) -> Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Some(from) = self.from {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        let stream = socket.connect(self.node).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Accepts connections until this is aborted. The connections end with it.
async fn accept(listener: TcpListener, line: Arc<Line>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // An error of `accept` means only that this one connection is gone.
            accepted = listener.accept() => if let Ok((client, _)) = accepted {
                let line = Arc::clone(&line);
                // If a connection breaks on one side, the proxy closes both sides.
                connections.spawn(async move { relay(client, &line).await.unwrap_or_default() });
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn relay(mut client: TcpStream, line: &Line) -> Result<()> {
    client.set_nodelay(true)?;
    let mut generation = line.ledger.0.generation.subscribe();
    if line.behaviour().swallows {
        return swallow(client).await;
    }
    let mut node = line.connect().await?;
    let (mut commands, mut replies) = (BytesMut::new(), BytesMut::new());
    let mut is_queued = false;
    loop {
        while value_end(&commands).is_none() {
            tokio::select! {
                read = client.read_buf(&mut commands) => if read? == 0 { return Ok(()) },
                // An unrequested reply: an error, or the end of the connection.
                read = node.read_buf(&mut replies) => {
                    let ended = read? == 0;
                    client.write_all_buf(&mut replies).await?;
                    if ended { return Ok(()) }
                }
                _ = generation.changed() => return Ok(()),
            }
        }
        let command = split_value(&mut commands);
        let words = words(&command);
        let handshake = words.is_empty() || HANDSHAKE.iter().any(|first| begins_with(&words, first));
        let mut fault = None;
        let mut pass = None;
        is_queued = begins_with(&words, "MULTI") || (is_queued && !begins_with(&words, "EXEC"));
        let is_answered = is_queued || !begins_with(&words, UNANSWERED);
        if !handshake {
            let (sent, arrival) = line.ledger.arrive(&line.name, words);
            if let Arrival::Waits(waits) = arrival {
                pass = Some(waits.await?);
            }
            fault = line.fault(&sent);
        }
        if line.behaviour().swallows {
            return swallow(client).await;
        }
        if fault == Some(Fault::CutBefore) {
            return Ok(());
        }
        let (before, behind) = line.behaviour().delay;
        pause(before).await;
        node.write_all(&command).await?;
        while is_answered && value_end(&replies).is_none() {
            if node.read_buf(&mut replies).await? == 0 {
                client.write_all_buf(&mut replies).await?;
                return Ok(());
            }
        }
        drop(pass);
        if fault == Some(Fault::CutBeforeReply) {
            return Ok(());
        }
        if !is_answered {
            if fault == Some(Fault::CutAfterReply) {
                return Ok(());
            }
            continue;
        }
        let reply = split_value(&mut replies);
        pause(behind).await;
        client.write_all(&reply).await?;
        if fault == Some(Fault::CutAfterReply) {
            return Ok(());
        }
    }
}

async fn pause(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

/// Reads until the client is gone.
async fn swallow(mut client: TcpStream) -> Result<()> {
    let mut nobody = BytesMut::new();
    while client.read_buf(&mut nobody).await? > 0 {
        nobody.clear();
    }
    Ok(())
}

fn split_value(bytes: &mut BytesMut) -> Bytes {
    let end = value_end(bytes).expect("the value was complete a moment ago");
    bytes.split_to(end).freeze()
}

/// The end of the first value in these bytes, in RESP 2 or 3. `None` if it is incomplete.
fn value_end(bytes: &[u8]) -> Option<usize> {
    let line_end = bytes.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let number = || std::str::from_utf8(&bytes[1..line_end - 2]).ok().and_then(|text| text.parse().ok());
    let values =
        |count: usize| (0..count).try_fold(line_end, |end, _| Some(end + value_end(bytes.get(end..)?)?));
    // A length of -1 is a null. If it is no number, the value is a text.
    let length: Option<usize> = number();
    match (bytes[0], length) {
        (b'$' | b'=' | b'!', Some(length)) => {
            let end = line_end + length + 2;
            (bytes.len() >= end).then_some(end)
        }
        (b'*' | b'~' | b'>', Some(length)) => values(length),
        (b'%', Some(length)) => values(2 * length),
        _ => Some(line_end),
    }
}

/// The words of a command, which is inline or an array.
fn words(command: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(command);
    if !text.starts_with('*') {
        return text.split_whitespace().map(str::to_owned).collect();
    }
    // `*2 $4 PING $2 hi`, each on its own line: every second line is a word.
    text.lines().skip(2).step_by(2).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_end_where_they_end() {
        for whole in [
            "+OK\r\n",
            "-ERR no\r\n",
            ":7\r\n",
            "$-1\r\n",
            "*-1\r\n",
            "$4\r\na\r\nb\r\n",
            "*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
            "%1\r\n+a\r\n$0\r\n\r\n",
            "PING\r\n",
        ] {
            let more = format!("{whole}+next\r\n");
            assert_eq!(value_end(more.as_bytes()), Some(whole.len()), "{whole:?}");
            for part in 0..whole.len() {
                assert_eq!(value_end(&whole.as_bytes()[..part]), None, "{part} bytes of {whole:?}");
            }
        }
    }

    #[test]
    fn words_are_read_from_arrays_and_lines() {
        assert_eq!(words(b"*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\n"), ["ECHO", "hi"]);
        assert_eq!(words(b"ECHO hi\r\n"), ["ECHO", "hi"]);
        let sent = Sent { number: 1, node: String::new(), words: words(b"sentinel monitor m\r\n") };
        assert!(sent.is("SENTINEL MONITOR") && !sent.is("SENTINEL MASTER"));
    }
}
