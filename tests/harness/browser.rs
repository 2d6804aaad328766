//! A headless browser, driven by WebDriver (W3C), which is JSON over HTTP.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::eventually;
use crate::http::Request;
use crate::lab::Lab;
use crate::process::Process;

/// How long the driver may take to start.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What the driver prints before its port once it listens.
const STARTED: &str = "started successfully on port ";

/// Whether a page is light or dark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `prefers-color-scheme: light`
    Light,
    /// `prefers-color-scheme: dark`
    Dark,
}

/// A Chromium that runs until this is dropped.
#[derive(Debug)]
pub struct Browser {
    /// Chromium ends when its driver ends.
    driver: Process,
    addr: SocketAddr,
    session: String,
}

impl Browser {
    /// Starts the `chromedriver` on `PATH`, or the one that the variable `CHROMEDRIVER` names, and a browser
    /// with it.
    pub async fn start(lab: &Lab) -> Result<Self> {
        let program = std::env::var_os("CHROMEDRIVER").unwrap_or_else(|| OsString::from("chromedriver"));
        let mut command = Command::new(&program);
        command.arg("--port=0");
        let driver = lab.spawn_group("browser", command);
        let mut driver = driver.context("hint: `make test` installs it: chromium and chromium-driver")?;
        let port = eventually(START_LIMIT, async || {
            let has_ended = driver.ended()?.is_some();
            assert!(!has_ended, "{} has ended: {}", program.to_string_lossy(), driver.output());
            let printed = driver.stdout();
            let port = printed.split_once(STARTED).and_then(|(_, rest)| rest.split_once('.'));
            let (port, _) =
                port.with_context(|| format!("the driver does not listen: {}", driver.output()))?;
            Ok(port.trim().parse::<u16>()?)
        })
        .await?;
        let mut browser =
            Self { driver, addr: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), session: String::new() };
        let profile = lab.dir().join("profile");
        let args = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            // With a pipe, Chromium ends at every end of the driver, even if the driver is killed.
            "--remote-debugging-pipe",
            &format!("--user-data-dir={}", profile.display()),
        ];
        let options = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": args},
        }}});
        let session: Value = browser.call("/session", &options).await?;
        browser.session = session["sessionId"].as_str().context("a session has an id")?.to_owned();
        Ok(browser)
    }

    /// Sets the width of pages, in CSS pixels, and whether they are light or dark. A narrow page is a
    /// phone's.
    pub async fn resize(&self, width: u32, scheme: Scheme) -> Result<()> {
        let mobile = width < 600;
        let metrics = json!({"width": width, "height": if mobile { 812 } else { 900 },
            "deviceScaleFactor": if mobile { 2 } else { 1 }, "mobile": mobile});
        // The answers are empty.
        let _: Value = self.devtools("Emulation.setDeviceMetricsOverride", metrics).await?;
        let value = if scheme == Scheme::Dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        let _: Value = self.devtools("Emulation.setEmulatedMedia", features).await?;
        Ok(())
    }

    /// Opens a page, and waits until it has loaded.
    pub async fn open(&self, url: &str) -> Result<()> {
        self.in_session("/url", &json!({"url": url})).await
    }

    /// Runs the body of a function in JavaScript and returns its result. The page's own policy does not apply
    /// to it.
    pub async fn script<T: DeserializeOwned>(&self, body: &str) -> Result<T> {
        self.in_session("/execute/sync", &json!({"script": body, "args": []})).await
    }

    /// Waits until a function in JavaScript returns true. The page may reload during the wait.
    pub async fn wait_until(&self, body: &str, limit: Duration) -> Result<()> {
        eventually(limit, async || {
            // A script that a reload interrupts is no failure.
            let last = self.script::<bool>(body).await;
            ensure!(matches!(last, Ok(true)), "{last:?}: {body}");
            Ok(())
        })
        .await
    }

    /// The whole page as a PNG.
    pub async fn screenshot(&self) -> Result<Vec<u8>> {
        let of = json!({"format": "png", "captureBeyondViewport": true});
        let shot: Value = self.devtools("Page.captureScreenshot", of).await?;
        Ok(BASE64_STANDARD.decode(shot["data"].as_str().context("a picture")?)?)
    }

    /// Ends the browser.
    pub async fn end(mut self) -> Result<()> {
        let path = format!("/session/{}", self.session);
        Request::new(self.addr, Method::DELETE, path).send().await?;
        self.driver.kill();
        Ok(())
    }

    async fn devtools<T: DeserializeOwned>(&self, command: &str, params: Value) -> Result<T> {
        self.in_session("/goog/cdp/execute", &json!({"cmd": command, "params": params})).await
    }

    async fn in_session<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        self.call(&format!("/session/{}{path}", self.session), body).await
    }

    async fn call<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        let reply = Request::new(self.addr, Method::POST, path).json(body).send().await?;
        let mut answer: Value = reply.json()?;
        let value = answer["value"].take();
        if !reply.status.is_success() {
            bail!("{path}: {}: {}", value["error"], value["message"]);
        }
        serde_json::from_value(value).with_context(|| format!("not what {path} was to answer"))
    }
}
