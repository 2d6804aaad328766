//! The server as a child process: its signals, its end, and the end of the orphans that it leaves behind.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::select_all;
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_process, set_parent_process_death_signal, wait,
};
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::sync::broadcast;
use tokio::time::sleep;

/// The variable with the address where systemd listens. systemd listens to this process only, so the server
/// does not get the variable.
pub const SOCKET: &str = "NOTIFY_SOCKET";

/// The signals that are passed on to the server.
const PASSED_ON: [(SignalKind, Signal); 6] = [
    (SignalKind::hangup(), Signal::HUP),
    (SignalKind::interrupt(), Signal::INT),
    (SignalKind::quit(), Signal::QUIT),
    (SignalKind::terminate(), Signal::TERM),
    (SignalKind::user_defined1(), Signal::USR1),
    (SignalKind::user_defined2(), Signal::USR2),
];

/// How long after SIGTERM or SIGINT the server gets SIGTERM again. While a Redis server writes its
/// append-only file for the first time, it drops both signals (`Writing initial AOF, can't exit`). A second
/// SIGINT would end the server without saving.
const TERM_AGAIN: Duration = Duration::from_secs(1);

/// The signals that this process gets. As process 1, it gets only the signals that it asks for.
#[derive(Debug)]
pub struct Signals {
    passed_on: Vec<(unix::Signal, Signal)>,
    child: unix::Signal,
}

impl Signals {
    /// From now on, none of these signals ends this process.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    pub fn new() -> Result<Self> {
        let passed_on =
            PASSED_ON.iter().map(|&(kind, number)| Ok((signal(kind)?, number))).collect::<Result<_>>()?;
        Ok(Self { passed_on, child: signal(SignalKind::child())? })
    }

    /// Waits for the next signal that ends a server. While there is no server, the others have no effect.
    pub async fn next_to_end(&mut self) -> Signal {
        loop {
            let signal = next(&mut self.passed_on).await;
            if matches!(signal, Signal::TERM | Signal::INT | Signal::QUIT) {
                return signal;
            }
        }
    }
}

async fn next(signals: &mut [(unix::Signal, Signal)]) -> Signal {
    let all = signals.iter_mut().map(|(signal, number)| {
        Box::pin(async move {
            signal.recv().await;
            *number
        })
    });
    select_all(all).await.0
}

/// Reports which of the other children have ended, and with which exit code.
pub type Ended = broadcast::Sender<(Pid, u8)>;

/// A server that was started and has not ended.
#[derive(Debug)]
pub struct ServerProcess {
    pid: Pid,
    others: Ended,
}

impl ServerProcess {
    /// Starts the server. `input` is all that the server reads from its standard input. Without `input`, it
    /// shares the standard input of this process.
    ///
    /// # Errors
    ///
    /// If the server can't be started.
    pub fn start(words: &[OsString], input: Option<&str>) -> Result<Self> {
        let (program, arguments) = words.split_first().context("there is no command")?;
        let mut command = Command::new(program);
        command.args(arguments).env_remove(SOCKET);
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        // A terminal sends Ctrl-C to the whole group. Redis would get it twice, and takes the second one for
        // `exit, and save nothing`.
        command.process_group(0);
        let parent = getpid();
        let die_with_parent = move || {
            set_parent_process_death_signal(Some(Signal::TERM))?;
            // The parent may have died before this call.
            if getppid() == Some(parent) { Ok(()) } else { Err(std::io::ErrorKind::NotFound.into()) }
        };
        #[expect(
            unsafe_code,
            reason = "there is no other way to have the server end with this process when that is killed"
        )]
        // SAFETY: between fork and exec, the closure makes two system calls. Neither allocates or takes a
        // lock.
        unsafe {
            command.pre_exec(die_with_parent);
        }
        let mut child =
            command.spawn().with_context(|| format!("starting `{}`", program.to_string_lossy()))?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // A server that does not read its input has ended. `ended` returns its exit code.
            let _ = stdin.write_all(input.as_bytes());
        }
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        // The server is waited for together with all other children, by their ids.
        Ok(Self { pid: pid.context("a process id is more than 0")?, others: broadcast::Sender::new(1024) })
    }

    /// Reports the end of the other children of this process. Nothing else can wait for them.
    pub fn others(&self) -> Ended {
        self.others.clone()
    }

    /// Waits until the server ends, and passes signals on to it. The first signal that ends the server is
    /// passed on only after `hand_over_before_stop`, unless a second signal comes. After that, SIGTERM is
    /// repeated. As process 1, this also waits for orphans. Returns the exit code that a shell would report:
    /// the server's own, or 128 plus the number of the signal that ended the server.
    pub async fn ended(&self, signals: &mut Signals, hand_over_before_stop: impl Future<Output = ()>) -> u8 {
        let mut hand_over_before_stop = pin!(hand_over_before_stop);
        let (mut awaited, mut is_stopping, mut is_terminated) = (None, false, false);
        loop {
            if let Some(code) = self.reap() {
                return code;
            }
            let Signals { passed_on, child } = signals;
            let signal = tokio::select! {
                _ = child.recv() => continue,
                () = &mut hand_over_before_stop, if awaited.is_some() => awaited.take(),
                () = sleep(TERM_AGAIN), if is_terminated => Some(Signal::TERM),
                signal = next(passed_on) => match signal {
                    Signal::TERM | Signal::INT if !is_stopping => {
                        (awaited, is_stopping) = (Some(signal), true);
                        continue;
                    }
                    Signal::TERM | Signal::INT | Signal::QUIT => {
                        awaited = None;
                        Some(signal)
                    }
                    // This signal ends nothing, so the signal that is held back stays held back.
                    signal => Some(signal),
                },
            };
            if let Some(signal) = signal {
                is_terminated |= matches!(signal, Signal::TERM | Signal::INT);
                // If this fails, the server has just ended.
                let _ = kill_process(self.pid, signal);
            }
        }
    }

    /// Reaps every child that has ended. Returns the server's exit code if the server has ended.
    fn reap(&self) -> Option<u8> {
        let mut ended = None;
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
            let Some(code) = code.map(|code| u8::try_from(code).unwrap_or(u8::MAX)) else { continue };
            if pid == self.pid {
                ended = Some(code);
            } else {
                // An error is ignored: there may be no receiver.
                let _ = self.others.send((pid, code));
            }
        }
        ended
    }
}
