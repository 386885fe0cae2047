//! The server over groups that delay, fail and reorder.

#![allow(clippy::unwrap_used)]

use super::admin::Said;
use super::*;
use crate::kv::Kv;
use crate::slots;
use longboat::{Index, StateMachine};
use longboat_rsm::Completion;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};

const SHARDS: usize = 4;

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

type Job = Box<dyn FnOnce(&mut Random) + Send>;

/// Groups in memory. Batches wait in a pool and are carried out in a random order, some only to fail.
struct Unruly {
    machines: Arc<Vec<Mutex<Kv>>>,
    jobs: mpsc::Sender<Job>,
    /// One in this many batches is refused, and one in this many fails without effect; 0 is never.
    failing: u64,
    seed: Mutex<Random>,
}

impl Unruly {
    fn start(failing: u64, seed: u64) -> Arc<Self> {
        let (jobs, receiver) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            let mut random = Random(seed);
            let mut pool: Vec<Job> = Vec::new();
            while let Ok(job) = receiver.recv() {
                pool.push(job);
                pool.extend(receiver.try_iter());
                while !pool.is_empty() {
                    let n = random.below(pool.len() as u64) as usize;
                    pool.swap_remove(n)(&mut random);
                    pool.extend(receiver.try_iter());
                }
            }
        });
        let machines = Arc::new((0..SHARDS).map(|_| Mutex::new(Kv::default())).collect());
        Arc::new(Self { machines, jobs, failing, seed: Mutex::new(Random(seed ^ 1)) })
    }

    fn fails(&self, random: &mut Random) -> bool {
        self.failing > 0 && random.below(self.failing) == 0
    }

    fn run<I: Send + 'static, T: Send + 'static>(
        &self,
        shard: usize,
        inputs: Vec<I>,
        mut carry_out: impl FnMut(&mut Kv, I) -> T + Send + 'static,
    ) -> Result<PendingBatch<T>, RequestError> {
        if self.fails(&mut self.seed.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Err(RequestError::Busy);
        }
        let completion = Completion::new();
        let pending = PendingBatch::new(vec![(Arc::clone(&completion), 0..inputs.len() as u32)]);
        let (machines, failing) = (Arc::clone(&self.machines), self.failing);
        let job: Job = Box::new(move |random| {
            // A batch fails in places: what is between them takes effect.
            let fails = failing > 0 && random.below(failing) == 0;
            let mut machine = machines[shard].lock().unwrap_or_else(PoisonError::into_inner);
            let mut result = |input| match fails && random.below(2) == 0 {
                true => Err(RequestError::Dropped),
                false => Ok(carry_out(&mut machine, input)),
            };
            let results: Vec<_> = inputs.into_iter().map(&mut result).collect();
            completion.complete(0, results.into_iter());
        });
        self.jobs.send(job).map_err(|_| RequestError::Stopped)?;
        Ok(pending)
    }
}

impl Shards for Unruly {
    fn count(&self) -> usize {
        SHARDS
    }

    fn propose(
        &self,
        shard: usize,
        commands: impl ExactSizeIterator<Item = Command>,
        _: Duration,
    ) -> Result<PendingBatch<Output>, RequestError> {
        self.run(shard, commands.collect(), |kv, command| kv.apply(Index(1), command).unwrap())
    }

    fn read(
        &self,
        shard: usize,
        queries: impl ExactSizeIterator<Item = Query>,
        _: Duration,
    ) -> Result<PendingBatch<Answer>, RequestError> {
        self.run(shard, queries.collect(), |kv, query| kv.lookup(query).unwrap())
    }

    fn admin(&self, admin: Admin, _: Duration) -> Answering {
        let said = match admin {
            Admin::Members { group } => Ok(Said::List(vec![format!("group {group}"), "replica 1".to_owned()])),
            Admin::Transfer { .. } => Ok(Said::Line("OK".to_owned())),
            Admin::Info { .. } => Ok(Said::Text("group:1\r\n".to_owned())),
            _ => Err("ERR refused".to_owned()),
        };
        Box::pin(std::future::ready(said))
    }

    fn info(&self, _: Option<&str>, out: &mut String) {
        out.push_str("# Groups\r\n");
    }
}

fn serve(shards: Arc<Unruly>) -> Server {
    Server::start("127.0.0.1:0".parse().unwrap(), 1, shards).unwrap()
}

fn connect(server: &Server) -> BufReader<TcpStream> {
    BufReader::new(TcpStream::connect(server.address()).unwrap())
}

/// One reply, as text: arrays in brackets.
fn reply(from: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    let line = line.trim_end();
    match line.as_bytes().first() {
        Some(b'$') if line != "$-1" => {
            let mut bytes = vec![0; line[1..].parse::<usize>().unwrap() + 2];
            from.read_exact(&mut bytes).unwrap();
            String::from_utf8(bytes).unwrap().trim_end().to_owned()
        }
        Some(b'*') => {
            let items: Vec<_> = (0..line[1..].parse::<usize>().unwrap()).map(|_| reply(from)).collect();
            format!("[{}]", items.join(" "))
        }
        _ => line.to_owned(),
    }
}

/// Sends inline commands in one write and reads as many replies.
fn ask(client: &mut BufReader<TcpStream>, commands: &[&str]) -> Vec<String> {
    let text: String = commands.iter().map(|command| format!("{command}\r\n")).collect();
    client.get_mut().write_all(text.as_bytes()).unwrap();
    commands.iter().map(|_| reply(client)).collect()
}

#[test]
fn a_pipeline_is_answered_in_order_and_sees_its_own_writes() {
    let server = serve(Unruly::start(0, 1));
    let mut client = connect(&server);
    let commands =
        ["SET a 1", "GET a", "PING", "INCR a", "MGET a b", "MSET a 5 b 6 a 7", "MGET a b", "DBSIZE", "DEL a b c"];
    let replies = ask(&mut client, &commands);
    assert_eq!(replies, ["+OK", "1", "+PONG", ":2", "[2 $-1]", "+OK", "[7 6]", ":2", ":2"]);
}

#[test]
fn what_an_operator_asks_is_answered_in_its_place() {
    let server = serve(Unruly::start(0, 1));
    let mut client = connect(&server);
    let commands =
        ["SET a 1", "LONGBOAT MEMBERS 2", "longboat transfer 2 1", "GET a", "LONGBOAT INFO", "LONGBOAT REMOVE 2 1"];
    let replies = ask(&mut client, &commands);
    assert_eq!(replies, ["+OK", "[group 2 replica 1]", "+OK", "1", "group:1", "-ERR refused"]);
    assert!(ask(&mut client, &["LONGBOAT SINK"])[0].starts_with("-ERR LONGBOAT takes"));
}

#[test]
fn a_long_pipeline_of_commands_without_groups_is_answered_to_the_end() {
    let server = serve(Unruly::start(0, 1));
    let mut client = connect(&server);
    assert!(ask(&mut client, &["PING"; 2000]).iter().all(|reply| reply == "+PONG"));
}

#[test]
fn garbage_closes_its_connection_with_an_error_and_is_counted() {
    let server = serve(Unruly::start(0, 1));
    let mut other = connect(&server);
    ask(&mut other, &["PING"]);
    let mut bad = connect(&server);
    bad.get_mut().write_all(b"SET a 1\r\n\x00\x01\x02").unwrap();
    let mut all = String::new();
    bad.read_to_string(&mut all).unwrap();
    assert_eq!(all, "+OK\r\n-ERR Protocol error: bytes that are no command\r\n");
    let replies = ask(&mut other, &["INFO stats", "GET a"]);
    assert!(replies[0].contains("protocol_errors:1"), "{}", replies[0]);
    assert_eq!(replies[1], "1");
}

#[test]
fn commands_before_the_end_of_input_are_carried_out() {
    let server = serve(Unruly::start(0, 1));
    let mut client = connect(&server);
    client.get_mut().write_all(b"SET a 1\r\nGET a\r\nGET").unwrap();
    client.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert_eq!(all, "+OK\r\n$1\r\n1\r\n");
}

#[test]
fn quit_ends_the_connection_after_what_came_before() {
    let server = serve(Unruly::start(0, 1));
    let mut client = connect(&server);
    client.get_mut().write_all(b"SET a 1\r\nQUIT\r\nPING\r\n").unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert_eq!(all, "+OK\r\n+OK\r\n");
}

/// A random command over few keys, and what it answers when commands are carried out one by one.
fn random_command(random: &mut Random, client: u64, model: &mut BTreeMap<String, i64>) -> (String, String) {
    let key = format!("{client}:{}", random.below(6));
    let value = random.below(1000) as i64;
    let shown = |value: Option<&i64>| value.map_or("$-1".to_owned(), i64::to_string);
    match random.below(6) {
        0 => {
            model.insert(key.clone(), value);
            (format!("SET {key} {value}"), "+OK".to_owned())
        }
        1 => {
            let number = model.entry(key.clone()).or_insert(0);
            *number += 1;
            (format!("INCR {key}"), format!(":{number}"))
        }
        2 => (format!("DEL {key}"), format!(":{}", u8::from(model.remove(&key).is_some()))),
        3 => {
            let other = format!("{client}:{}", random.below(6));
            let answer = format!("[{} {}]", shown(model.get(&key)), shown(model.get(&other)));
            (format!("MGET {key} {other}"), answer)
        }
        4 => {
            let free = !model.contains_key(&key);
            if free {
                model.insert(key.clone(), value);
            }
            (format!("SET {key} {value} NX"), if free { "+OK" } else { "$-1" }.to_owned())
        }
        _ => (format!("GET {key}"), shown(model.get(&key))),
    }
}

/// Each client has keys of its own, so that its replies are those of a map of its own, whatever the groups do.
/// Returns how many commands failed.
fn check_order(failing: u64, seed: u64) -> usize {
    let server = serve(Unruly::start(failing, seed));
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let mut stream = connect(&server);
            std::thread::spawn(move || {
                let (mut random, mut model) = (Random(seed + client), BTreeMap::new());
                let mut failures = 0;
                for _ in 0..40 {
                    let count = 1 + random.below(40);
                    let expected: Vec<_> =
                        (0..count).map(|_| random_command(&mut random, client, &mut model)).collect();
                    let commands: Vec<_> = expected.iter().map(|(command, _)| command.as_str()).collect();
                    let replies = ask(&mut stream, &commands);
                    let failed = replies.iter().filter(|reply| reply.starts_with("-TRYAGAIN")).count();
                    failures += failed;
                    if failed > 0 {
                        // What failed had no effect: the model can't know which order it would have had, so it starts anew.
                        for key in 0..6 {
                            while !ask(&mut stream, &[&format!("DEL {client}:{key}")])[0].starts_with(':') {}
                        }
                        model.clear();
                        continue;
                    }
                    for (reply, (command, answer)) in replies.iter().zip(&expected) {
                        assert_eq!(reply, answer, "{command} with seed {seed}");
                    }
                }
                failures
            })
        })
        .collect();
    clients.into_iter().map(|client| client.join().unwrap()).sum()
}

#[test]
fn effects_keep_the_order_of_a_connection_though_batches_are_reordered() {
    for seed in 1..=5 {
        assert_eq!(check_order(0, seed), 0);
    }
}

#[test]
fn effects_keep_the_order_of_a_connection_though_batches_fail_in_part() {
    for seed in 1..=2 {
        check_order(20, seed);
    }
}

#[test]
fn a_busy_group_is_asked_again() {
    let server = serve(Unruly::start(2, 7));
    let mut client = connect(&server);
    let keys: Vec<_> = (0..200).map(|n| format!("SET key{n} {n}")).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    assert!(ask(&mut client, &keys).iter().all(|reply| reply == "+OK"), "distinct keys can always be tried again");
    assert!((0..SHARDS).all(|shard| (0..200).any(|n| slots::shard(format!("key{n}").as_bytes(), SHARDS) == shard)));
}
