//! The server as a child process: its signals, its end, and the end of whoever it leaves behind.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::pin::pin;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use futures::future::select_all;
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_process, set_parent_process_death_signal, wait,
};
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::sync::broadcast;

/// The variable that says where systemd listens. It listens to this process only, so the server is not given it.
pub const SOCKET: &str = "NOTIFY_SOCKET";

/// The signals that are passed on.
const PASSED_ON: [(SignalKind, Signal); 6] = [
    (SignalKind::hangup(), Signal::HUP),
    (SignalKind::interrupt(), Signal::INT),
    (SignalKind::quit(), Signal::QUIT),
    (SignalKind::terminate(), Signal::TERM),
    (SignalKind::user_defined1(), Signal::USR1),
    (SignalKind::user_defined2(), Signal::USR2),
];

/// The signals that this process gets. As process 1 it would not get them without asking for them.
#[derive(Debug)]
pub struct Signals {
    passed_on: Vec<(unix::Signal, Signal)>,
    child: unix::Signal,
}

impl Signals {
    /// From now on none of them ends this process.
    ///
    /// # Errors
    ///
    /// When the operating system refuses.
    pub fn new() -> Result<Self> {
        let passed_on =
            PASSED_ON.iter().map(|&(kind, number)| Ok((signal(kind)?, number))).collect::<Result<_>>()?;
        Ok(Self { passed_on, child: signal(SignalKind::child())? })
    }

    /// Waits for the next one that is to be passed on.
    pub async fn next(&mut self) -> Signal {
        next(&mut self.passed_on).await
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

/// Tells which of the other children have ended, and with which exit code.
pub type Ended = broadcast::Sender<(Pid, u8)>;

/// A server that was started, and has yet to end.
#[derive(Debug)]
pub struct ServerProcess {
    pid: Pid,
    others: Ended,
}

impl ServerProcess {
    /// Starts it. What is given as `input` is all that it reads from its standard input; without, it shares this process's.
    ///
    /// # Errors
    ///
    /// When it can't be started.
    pub fn start(words: &[OsString], input: Option<&str>) -> Result<Self> {
        let (program, arguments) = words.split_first().context("there is no command")?;
        let mut command = Command::new(program);
        command.args(arguments).env_remove(SOCKET);
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        // A terminal sends Ctrl-C to the whole group. Redis would get it twice, and takes that for `exit, and save nothing`.
        command.process_group(0);
        let parent = getpid();
        let die_with_parent = move || {
            set_parent_process_death_signal(Some(Signal::TERM))?;
            // It may have died before that.
            if getppid() == Some(parent) { Ok(()) } else { Err(std::io::ErrorKind::NotFound.into()) }
        };
        #[expect(
            unsafe_code,
            reason = "there is no other way to have the server end with this process when that is killed"
        )]
        // SAFETY: between fork and exec it makes two system calls, and neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(die_with_parent);
        }
        let mut child =
            command.spawn().with_context(|| format!("starting `{}`", program.to_string_lossy()))?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // One that does not read it has ended, and is asked why below.
            let _ = stdin.write_all(input.as_bytes());
        }
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        // It is waited for with all other children, by their ids.
        Ok(Self { pid: pid.context("a process id is more than 0")?, others: broadcast::Sender::new(1024) })
    }

    /// What tells that another child of this process has ended: nothing else can wait for it.
    pub fn others(&self) -> Ended {
        self.others.clone()
    }

    /// Waits until it ends, and passes signals on meanwhile: the first that ends it only after `before_its_end`, unless there comes
    /// another. As process 1 it waits for whoever lost their parent as well. The answer is the exit code that a shell would report: the
    /// server's own, or 128 and the signal that ended it.
    pub async fn ended(&self, signals: &mut Signals, before_its_end: impl Future<Output = ()>) -> u8 {
        let mut before_its_end = pin!(before_its_end);
        let (mut awaited, mut was_told) = (None, false);
        loop {
            if let Some(code) = self.reap() {
                return code;
            }
            let Signals { passed_on, child } = signals;
            let signal = tokio::select! {
                _ = child.recv() => continue,
                () = &mut before_its_end, if awaited.is_some() => awaited.take(),
                signal = next(passed_on) => match signal {
                    Signal::TERM | Signal::INT if !was_told => {
                        (awaited, was_told) = (Some(signal), true);
                        continue;
                    }
                    Signal::TERM | Signal::INT | Signal::QUIT => {
                        awaited = None;
                        Some(signal)
                    }
                    // It ends nothing, and is not what is waited for.
                    signal => Some(signal),
                },
            };
            if let Some(signal) = signal {
                // It has just ended, where this fails.
                let _ = kill_process(self.pid, signal);
            }
        }
    }

    /// Takes note of every child that has ended.
    fn reap(&self) -> Option<u8> {
        let mut ended = None;
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
            let Some(code) = code.map(|code| u8::try_from(code).unwrap_or(u8::MAX)) else { continue };
            if pid == self.pid {
                ended = Some(code);
            } else {
                // Nobody may want to know.
                let _ = self.others.send((pid, code));
            }
        }
        ended
    }
}
