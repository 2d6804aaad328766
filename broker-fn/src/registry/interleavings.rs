//! Every interleaving of a few writers and a reader, one store operation at a time.
//!
//! Each operation waits for its turn. The scheduler gives the turn to any waiting operation, in every
//! possible order. It walks the tree of choices depth first, and replays the choices so far to return to a
//! branch. If two orders lead to the same state (the store, what each task has seen, and the order in which
//! actions began and were answered), the rest of the walk is the same too. So the rest is walked once and
//! counted for both orders.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::UNIX_EPOCH;

use futures::FutureExt;

use super::memory::MemoryStore;
use super::tests::neighbour_of;
use super::*;
use crate::api::Expected;

const A: &str = "10.0.0.1:6379";
const B: &str = "10.0.0.2:6379";

/// An action of a task. A task does its actions one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Register(&'static str),
    RegisterWithRunId(&'static str),
    /// With a `ttl` of about an hour.
    RegisterForAWhile(&'static str),
    /// In another group of the same shard.
    RegisterNextDoor(&'static str),
    DeleteNextDoor,
    Deregister(&'static str),
    DeleteGroup,
    PutOutcome,
    Read,
    /// Wrong on purpose: it takes the snapshot that its instance has used last as the roster, without a
    /// check.
    ReadTrustingWhatIsKept,
    /// Wrong on purpose: it takes the revision after it has listed.
    ReadTakingRevisionLate,
    /// Wrong on purpose: it sets the revision before the key.
    RegisterTellingEarly(&'static str),
}

use Action::*;

const WRITERS: [Action; 6] =
    [Register(A), Register(B), Deregister(A), DeleteGroup, RegisterWithRunId(A), PutOutcome];

impl Action {
    async fn run(self, registry: &Registry<Stepwise>, now: Timestamp) -> Option<Members> {
        let group = group();
        match self {
            Register(addr) => {
                let _ = registry.register(&group, Kind::Redis, node(addr), now, BOUNDS).await.unwrap();
            }
            RegisterWithRunId(addr) => {
                let node = Node { run_id: Some("run".parse().unwrap()), ..node(addr) };
                let _ = registry.register(&group, Kind::Redis, node, now, BOUNDS).await.unwrap();
            }
            RegisterForAWhile(addr) => {
                let _ = registry.register(&group, Kind::Redis, for_a_while(addr), now, BOUNDS).await.unwrap();
            }
            RegisterNextDoor(addr) => {
                let _ = registry.register(&next_door(), Kind::Redis, node(addr), now, BOUNDS).await.unwrap();
            }
            DeleteNextDoor => registry.delete_group(&next_door()).await.unwrap(),
            Deregister(addr) => {
                registry.deregister(&group, Kind::Redis, &addr.parse().unwrap()).await.unwrap();
            }
            DeleteGroup => registry.delete_group(&group).await.unwrap(),
            PutOutcome => registry.put_outcome(&group, &outcome(), last_verified().as_ref()).await.unwrap(),
            Read => return Some(registry.members(&group, now).await.unwrap()),
            ReadTrustingWhatIsKept => {
                registry.revision(Shard::of(&group)).await.unwrap();
                let snapshot = registry.instance.kept(Shard::of(&group))?;
                return Some(snapshot.members(&group).unwrap().decode().unwrap());
            }
            ReadTakingRevisionLate => {
                let shard = Shard::of(&group);
                let Listed { keys, groups, until, .. } = registry.list(shard, now).await.unwrap();
                let revision = registry.revision(shard).await.unwrap()?;
                let encoded = groups
                    .into_iter()
                    .map(|(group, members)| (group, EncodedMembers::of(&members.unwrap()).unwrap()));
                registry.keep_snapshot(shard, revision, keys, encoded.collect(), until, now).await.unwrap();
            }
            RegisterTellingEarly(addr) => {
                let addr: Addr = addr.parse().unwrap();
                registry.renew(Shard::of(&group), BTreeMap::new()).await.unwrap();
                let key = registration_key(&group, Kind::Redis, &addr);
                let registration = Registration::new(addr, now);
                registry.store.set(&key, encode(&registration).unwrap()).await.unwrap();
            }
        }
        None
    }

    fn registers(self) -> Option<&'static str> {
        match self {
            Register(addr)
            | RegisterWithRunId(addr)
            | RegisterForAWhile(addr)
            | RegisterTellingEarly(addr) => Some(addr),
            _ => None,
        }
    }

    fn deregisters(self, addr: &str) -> bool {
        self == DeleteGroup || matches!(self, Deregister(forgotten) if forgotten == addr)
    }
}

/// One state of a group to start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Empty,
    /// A registered long ago, and its roster was read.
    WarmWithA,
    /// The same, but with a `ttl` that ends between the moments at which the first and the second task begin.
    ExpiringA,
}

/// When reads happen, relative to the changes that they see. The time decides whether the listing of a read
/// is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    Soon,
    /// By a clock that is so far ahead that revisions have settled.
    Later,
    /// Alternately soon and later, by task.
    Both,
}

impl Reads {
    /// The time for a task that does this action.
    fn at(self, action: Action, task: usize) -> Timestamp {
        let is_read = matches!(action, Read | ReadTrustingWhatIsKept | ReadTakingRevisionLate);
        let is_later = match self {
            Reads::Soon => false,
            Reads::Later => true,
            Reads::Both => task % 2 == 1,
        };
        let later = if is_read && is_later { 2 * SETTLED_AFTER } else { Duration::ZERO };
        clock(task).after(later)
    }

    /// The time of the last read. At this time, a listing is still valid.
    fn end(self) -> Timestamp {
        self.at(Read, 5)
    }
}

/// The time for a task that changes something. The second task begins when the `ttl` of [`for_a_while`] ends.
fn clock(task: usize) -> Timestamp {
    at(3602 - 1).after(Duration::from_millis(950 + 50 * task as u64))
}

impl Start {
    /// The registry of an instance that has read this state, with a store that holds it.
    fn registry(self) -> Registry<MemoryStore> {
        let registry = Registry::new(MemoryStore::default());
        if self != Start::Empty {
            let node = if self == Start::ExpiringA { for_a_while(A) } else { node(A) };
            let registered = registry.register(&group(), Kind::Redis, node, at(0), BOUNDS).now_or_never();
            assert!(matches!(registered, Some(Ok(Registered::First(_)))));
            // The first read stores the snapshot, and the second uses it.
            for _ in 0..2 {
                registry.members(&group(), at(3590)).now_or_never().unwrap().unwrap();
            }
            assert!(registry.instance.kept(Shard::of(&group())).is_some());
        }
        registry
    }
}

/// Which instance of the component serves which task. Each instance keeps the snapshot that it has used last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instances {
    /// A new instance for each task.
    New,
    /// One instance for all tasks, which has read the roster before.
    Warm,
}

/// The place of an action: the task's number, and the action's number within the task.
type ActionId = (usize, usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Began(ActionId),
    Answered(ActionId),
}

/// What the tasks and the scheduler share.
#[derive(Default)]
struct Desk {
    /// The task that is being polled.
    task: usize,
    /// The number of each task's present action.
    actions: Vec<usize>,
    /// Operations that wait for their turn, as task and ticket.
    waiting: Vec<(usize, usize)>,
    tickets: usize,
    turn: Option<usize>,
    events: Vec<Event>,
    /// What the present action of each task has seen.
    seen: Vec<String>,
}

/// A store whose every operation waits for its turn.
#[derive(Clone)]
struct Stepwise {
    memory: MemoryStore,
    desk: Arc<Mutex<Desk>>,
}

impl Stepwise {
    async fn turn<T: fmt::Debug>(&self, what: &str, operation: impl Future<Output = T>) -> T {
        let mut ticket = None;
        let task = poll_fn(|_| {
            let desk = &mut *self.desk.lock().unwrap();
            match ticket {
                None => {
                    ticket = Some(desk.tickets);
                    desk.waiting.push((desk.task, desk.tickets));
                    desk.tickets += 1;
                    Poll::Pending
                }
                Some(_) if desk.turn == ticket => {
                    desk.turn = None;
                    Poll::Ready(desk.task)
                }
                Some(_) => Poll::Pending,
            }
        })
        .await;
        let result = operation.await;
        self.desk.lock().unwrap().seen[task] += &format!("{what}={result:?};");
        result
    }
}

impl Store for Stepwise {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let value = async {
            self.memory.get(key).await.map(|value| value.map(|bytes| String::from_utf8(bytes).unwrap()))
        };
        Ok(self.turn(key, value).await?.map(String::into_bytes))
    }

    async fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        self.turn("", self.memory.set(key, value)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.turn("", self.memory.delete(key)).await
    }

    async fn get_keys(&self) -> Result<Vec<String>, StoreError> {
        self.turn("", self.memory.get_keys()).await
    }

    fn now(&self) -> Timestamp {
        clock(self.desk.lock().unwrap().task)
    }
}

/// One run, between two operations.
struct Run<'a> {
    tasks: &'a [Vec<Action>],
    start: Start,
    when: Reads,
    store: Stepwise,
    /// One registry per task.
    registries: Vec<Registry<Stepwise>>,
    futures: Vec<Option<Pin<Box<dyn Future<Output = ()>>>>>,
    reads: Arc<Mutex<Vec<(ActionId, Members)>>>,
}

impl<'a> Run<'a> {
    fn new(
        start: Start,
        warm: &Registry<MemoryStore>,
        instances: Instances,
        when: Reads,
        tasks: &'a [Vec<Action>],
    ) -> Self {
        let memory = MemoryStore::default();
        memory.state().entries.clone_from(&warm.store.state().entries);
        let desk =
            Desk { actions: vec![0; tasks.len()], seen: vec![String::new(); tasks.len()], ..Desk::default() };
        let store = Stepwise { memory, desk: Arc::new(Mutex::new(desk)) };
        let reads = Arc::default();
        let shared = Registry::new(store.clone());
        shared.instance.lock_kept().clone_from(&warm.instance.lock_kept());
        let registry = |_| match instances {
            Instances::New => Registry::new(store.clone()),
            Instances::Warm => shared.clone(),
        };
        let registries: Vec<_> = tasks.iter().map(registry).collect();
        let futures = tasks.iter().zip(&registries).enumerate().map(|(task, (actions, registry))| {
            let (actions, registry) = (actions.clone(), registry.clone());
            let (store, reads) = (store.clone(), Arc::clone(&reads));
            let future = async move {
                for (index, action) in actions.into_iter().enumerate() {
                    // An action depends on what its instance keeps when it begins.
                    let kept = format!("{:?};", registry.instance);
                    store.desk.lock().unwrap().seen[task] = kept;
                    let members = action.run(&registry, when.at(action, task)).await;
                    let place = (task, index);
                    let mut desk = store.desk.lock().unwrap();
                    desk.events.push(Event::Answered(place));
                    desk.actions[task] += 1;
                    if let Some(members) = members {
                        let reads: &Mutex<Vec<_>> = &reads;
                        reads.lock().unwrap().push((place, members));
                    }
                }
            };
            Some(Box::pin(future) as Pin<Box<dyn Future<Output = ()>>>)
        });
        let futures = futures.collect();
        let mut run = Self { tasks, start, when, store, registries, futures, reads };
        for task in 0..tasks.len() {
            run.poll(task);
        }
        run
    }

    fn poll(&mut self, task: usize) {
        self.store.desk.lock().unwrap().task = task;
        let future = self.futures[task].as_mut().expect("a task that has ended has no operation waiting");
        if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            self.futures[task] = None;
        }
    }

    fn waiting(&self) -> usize {
        self.store.desk.lock().unwrap().waiting.len()
    }

    /// Runs one of the waiting operations. If that completes a read, checks what was read.
    fn step(&mut self, choice: usize) -> Result<(), String> {
        let task = {
            let desk = &mut *self.store.desk.lock().unwrap();
            // Sorted by task and not by when they began to wait, so that equal states offer equal choices.
            desk.waiting.sort_unstable();
            let (task, ticket) = desk.waiting.remove(choice);
            desk.turn = Some(ticket);
            let began = Event::Began((task, desk.actions[task]));
            if !desk.events.contains(&began) {
                desk.events.push(began);
            }
            task
        };
        self.poll(task);
        for (place, members) in self.reads.lock().unwrap().drain(..) {
            self.check_read(place, &members)?;
        }
        Ok(())
    }

    /// A read contains every change that was answered before the read began.
    fn check_read(&self, read: ActionId, members: &Members) -> Result<(), String> {
        check_order(members)?;
        let events = self.store.desk.lock().unwrap().events.clone();
        let when = |event| events.iter().position(|candidate| *candidate == event);
        let read_began = when(Event::Began(read)).expect("a read that is answered has begun");
        // Every action that has begun, with when it began and was answered. What the start state holds began
        // before all.
        let begun: Vec<(Action, usize, usize)> = (self.start != Start::Empty)
            .then_some((Register(A), 0, 0))
            .into_iter()
            .chain(events.iter().enumerate().filter_map(|(began, event)| {
                let Event::Began((task, index)) = *event else { return None };
                let answered =
                    when(Event::Answered((task, index))).map_or(usize::MAX, |answered| answered + 1);
                Some((self.tasks[task][index], began + 1, answered))
            }))
            .collect();
        for addr in [A, B] {
            let registers = |action: Action| action.registers() == Some(addr);
            let deregisters = |action: Action| action.deregisters(addr);
            // Whether one of `these` was answered before the read began, and all of `those` were answered
            // before that action began.
            let settled = |these: &dyn Fn(Action) -> bool, those: &dyn Fn(Action) -> bool| {
                begun.iter().any(|(action, began, answered)| {
                    these(*action)
                        && *answered <= read_began
                        && begun.iter().all(|(other, _, answered)| !those(*other) || answered < began)
                })
            };
            let is_addr = |registration: &&Registration| registration.addr.to_string() == addr;
            let is_there = members.redis.iter().any(|registration| is_addr(&registration));
            let registered_again = events.iter().any(|event| match *event {
                Event::Answered((task, index)) => {
                    self.tasks[task][index] == RegisterForAWhile(addr)
                        && when(*event).is_some_and(|answered| answered < read_began)
                }
                Event::Began(_) => false,
            });
            if registered_again
                && members.redis.iter().find(is_addr).is_some_and(|registration| registration.stale)
            {
                return Err(format!(
                    "{addr} had registered again before the read began, and is stale in it: {events:?}"
                ));
            }
            if settled(&registers, &deregisters) && !is_there {
                return Err(format!(
                    "{addr} was answered before the read began, and is not in it: {events:?}"
                ));
            }
            if settled(&deregisters, &registers) && is_there {
                return Err(format!("{addr} was forgotten before the read began, and is in it: {events:?}"));
            }
        }
        Ok(())
    }

    /// At the end, a read by any instance shows what the keys hold.
    fn check_end(&self) -> Result<(), String> {
        let memory = &self.store.memory;
        let truth = Registry::new(memory.clone());
        let end = self.when.end();
        let listed = truth.list(Shard::of(&group()), end).now_or_never().unwrap().unwrap().groups;
        let instances = self.registries.iter().map(|registry| Arc::clone(&registry.instance));
        for instance in instances.chain([Arc::default()]) {
            let registry = Registry { store: memory.clone(), instance };
            for group in [group(), next_door()] {
                let truth = listed.get(&group).cloned().unwrap_or_else(|| Ok(Members::default())).unwrap();
                let read = registry.members(&group, end).now_or_never().unwrap().unwrap();
                check_order(&read)?;
                if but_last_seen(&read) != but_last_seen(&truth) {
                    return Err(format!("in the end {truth:?} is stored of {group}, but {read:?} is read"));
                }
            }
        }
        Ok(())
    }

    /// Everything on which the rest of the walk depends. Nonces are random, so each is replaced by a number,
    /// in the order of their first occurrence.
    fn state(&self) -> String {
        let desk = self.store.desk.lock().unwrap();
        let mut state = String::new();
        for (key, value) in &self.store.memory.state().entries {
            state += &format!("{key}={};", str::from_utf8(value).unwrap());
        }
        for registry in &self.registries {
            state += &format!("{:?};", registry.instance);
        }
        state += &format!("{:?} {:?}", desk.seen, desk.actions);
        // The order of events matters only to a read that has not been answered yet.
        let reads = self.tasks.iter().flatten().filter(|action| **action == Read).count();
        let answered_reads = desk.events.iter().filter(|event| {
            let Event::Answered((task, index)) = **event else { return false };
            self.tasks[task][index] == Read
        });
        if answered_reads.count() < reads {
            state += &format!("{:?}", desk.events);
        }
        let is_nonce = |word: &&str| word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut names = Vec::<&str>::new();
        let mut canonical = String::with_capacity(state.len());
        // A nonce is a whole JSON string, perhaps with escaped quotes.
        for word in state.split('"') {
            let nonce = word.trim_end_matches('\\');
            if is_nonce(&nonce) {
                let known = names.iter().position(|name| *name == nonce);
                canonical += &known.unwrap_or(names.len()).to_string();
                if known.is_none() {
                    names.push(nonce);
                }
            } else {
                canonical += word;
            }
            canonical.push('"');
        }
        canonical
    }
}

/// Walks every order. Returns the number of orders, or the first fault.
fn explore(start: Start, instances: Instances, when: Reads, tasks: &[Vec<Action>]) -> Result<u64, String> {
    fn walk<'a>(
        run: Run<'a>,
        choices: &mut Vec<usize>,
        known: &mut HashMap<String, u64>,
        replay: &dyn Fn(&[usize]) -> Run<'a>,
    ) -> Result<u64, String> {
        let state = run.state();
        if let Some(orders) = known.get(&state) {
            return Ok(*orders);
        }
        let waiting = run.waiting();
        if waiting == 0 {
            run.check_end()?;
            return Ok(1);
        }
        let mut orders = 0;
        let mut run = Some(run);
        for choice in 0..waiting {
            let mut branch = run.take().unwrap_or_else(|| replay(choices));
            branch.step(choice)?;
            choices.push(choice);
            orders += walk(branch, choices, known, replay)?;
            choices.pop();
        }
        known.insert(state, orders);
        Ok(orders)
    }
    let warm = start.registry();
    let replay = |choices: &[usize]| {
        let mut run = Run::new(start, &warm, instances, when, tasks);
        for choice in choices {
            run.step(*choice).expect("a prefix that was walked without a fault has none");
        }
        run
    };
    walk(replay(&[]), &mut Vec::new(), &mut HashMap::new(), &replay)
        .map_err(|fault| format!("from {start:?}, {instances:?}, {when:?}, {tasks:?}: {fault}"))
}

/// The members without `last_seen`, which may be a little older in a snapshot.
fn but_last_seen(members: &Members) -> Members {
    let mut members = members.clone();
    members.redis.iter_mut().for_each(|registration| registration.last_seen = at(0));
    members
}

fn check_order(members: &Members) -> Result<(), String> {
    let in_order = members.redis.is_sorted_by_key(|registration| registration.registered_at);
    in_order.then_some(()).ok_or_else(|| format!("not in the order of registering: {members:?}"))
}

fn group() -> Group {
    "g".parse().unwrap()
}

/// Registered at 0, the node is stale from 3602 on.
fn for_a_while(addr: &str) -> Node {
    Node { ttl: Some(3602.try_into().unwrap()), ..node(addr) }
}

fn next_door() -> Group {
    static NEXT_DOOR: LazyLock<Group> = LazyLock::new(|| neighbour_of(&group()));
    NEXT_DOOR.clone()
}

fn node(addr: &str) -> Node {
    Node::new(addr.parse().unwrap())
}

/// Counting groups changes no roster.
const BOUNDS: Bounds = Bounds { registrations: 64, groups: None };

fn at(seconds: u64) -> Timestamp {
    Timestamp::from(UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds))
}

fn last_verified() -> Option<LastVerified> {
    let expected = Expected { redis: 1, sentinels: 1, quorum: 1 };
    let (redis, sentinels) = (vec![], vec![]);
    Some(LastVerified { at: at(0), master: A.parse().unwrap(), redis, sentinels, expected })
}

fn outcome() -> Outcome {
    Outcome {
        verified: true,
        master: Some(A.parse().unwrap()),
        at: at(0),
        reason: None,
        restore: Default::default(),
        expected: None,
    }
}

/// Every pair of `writers`, including each action with itself.
fn pairs(writers: &[Action]) -> impl Iterator<Item = [Action; 2]> {
    (0..writers.len()).flat_map(move |i| (i..writers.len()).map(move |j| [writers[i], writers[j]]))
}

/// Every order of each set of tasks, with `SWEEP=all`; otherwise of every fourth set. Panics if one of them
/// is wrong.
fn explore_all(
    start: Start,
    instances: Instances,
    sets: impl IntoIterator<Item = Vec<Vec<Action>>>,
    at_least: u64,
) {
    let is_whole = std::env::var_os("SWEEP").is_some_and(|value| value == "all");
    let (step, at_least) = if is_whole { (1, at_least) } else { (4, (at_least / 10).min(300)) };
    let mut orders = [0; 3];
    for tasks in sets.into_iter().step_by(step) {
        let readers = tasks.iter().filter(|actions| actions.contains(&Read)).count();
        for (when, orders) in [Reads::Soon, Reads::Later, Reads::Both].into_iter().zip(&mut orders) {
            if when != Reads::Both || readers > 1 {
                *orders += explore(start, instances, when, &tasks).unwrap_or_else(|fault| panic!("{fault}"));
            }
        }
    }
    println!("{orders:?} interleavings from {start:?}, {instances:?}, with reads soon, later and both");
    // Reads that are soon store no snapshot, so there are fewer orders.
    assert!(
        orders[1] >= at_least && orders[0] >= at_least / 30,
        "only {orders:?} interleavings were covered"
    );
}

fn two_writers_and_a_reader() -> impl Iterator<Item = Vec<Vec<Action>>> {
    pairs(&WRITERS).map(|[one, other]| vec![vec![one], vec![other], vec![Read]])
}

#[test]
fn two_writers_of_a_new_group_lose_no_answered_change() {
    explore_all(Start::Empty, Instances::New, two_writers_and_a_reader(), 300_000);
}

#[test]
fn two_writers_of_a_known_group_lose_no_answered_change() {
    explore_all(Start::WarmWithA, Instances::New, two_writers_and_a_reader(), 2_000_000);
}

#[test]
fn two_writers_and_an_old_reader_lose_no_answered_change() {
    explore_all(Start::WarmWithA, Instances::Warm, two_writers_and_a_reader(), 200_000);
}

#[test]
fn registering_again_while_expiring_is_never_read_as_stale() {
    for instances in [Instances::New, Instances::Warm] {
        let sets = [
            vec![vec![RegisterForAWhile(A)], vec![Read], vec![Read]],
            vec![vec![RegisterForAWhile(A)], vec![Read; 2]],
            vec![vec![RegisterForAWhile(A)], vec![Register(B)], vec![Read]],
        ];
        explore_all(Start::ExpiringA, instances, sets, 1_000);
    }
}

#[test]
fn a_neighbour_in_the_shard_loses_no_answered_change() {
    for (start, instances) in STARTS {
        let next_door = [RegisterNextDoor(B), DeleteNextDoor];
        let sets = WRITERS
            .iter()
            .flat_map(|writer| next_door.map(|neighbour| vec![vec![*writer], vec![neighbour], vec![Read]]));
        explore_all(start, instances, sets, 10_000);
    }
}

const STARTS: [(Start, Instances); 3] =
    [(Start::Empty, Instances::New), (Start::WarmWithA, Instances::New), (Start::WarmWithA, Instances::Warm)];

#[test]
fn a_reader_that_reads_thrice_loses_no_answered_change() {
    for (start, instances) in STARTS {
        let sets = WRITERS.map(|writer| vec![vec![writer], vec![Read; 3]]);
        explore_all(start, instances, sets, 400);
    }
}

#[test]
fn a_writer_and_two_readers_never_lose_an_answered_change_in_any_order() {
    for (start, instances) in STARTS {
        let sets = WRITERS.map(|writer| vec![vec![writer], vec![Read], vec![Read]]);
        explore_all(start, instances, sets, 50_000);
    }
}

#[test]
fn two_readers_of_one_instance_lose_no_answered_change() {
    let sets = [Register(B), Deregister(A), RegisterWithRunId(A)]
        .into_iter()
        .flat_map(|writer| [vec![Read], vec![Read; 2]].map(|other| vec![vec![writer], vec![Read; 2], other]));
    explore_all(Start::WarmWithA, Instances::Warm, sets, 400_000);
}

#[test]
fn the_search_catches_a_reader_that_trusts_what_its_instance_has_kept() {
    for when in [Reads::Soon, Reads::Later] {
        let tasks = [vec![Register(B)], vec![ReadTrustingWhatIsKept]];
        let fault = explore(Start::WarmWithA, Instances::Warm, when, &tasks).unwrap_err();
        assert!(fault.contains("10.0.0.2:6379 was answered before the read began"), "{fault}");
    }
}

#[test]
fn the_search_catches_a_reader_that_takes_the_revision_after_listing() {
    for when in [Reads::Soon, Reads::Later] {
        let tasks = [vec![Register(B)], vec![ReadTakingRevisionLate, Read]];
        let fault = explore(Start::WarmWithA, Instances::New, when, &tasks).unwrap_err();
        assert!(fault.contains("10.0.0.2:6379 was answered before the read began"), "{fault}");
    }
}

#[test]
fn the_search_catches_a_writer_that_sets_the_revision_before_its_key() {
    for when in [Reads::Soon, Reads::Later] {
        let tasks = [vec![RegisterTellingEarly(B)], vec![Read, Read]];
        let fault = explore(Start::WarmWithA, Instances::New, when, &tasks).unwrap_err();
        assert!(fault.contains("is not in it") || fault.contains("in the end"), "{fault}");
    }
}
