//! The protocol for one counter, without any of its code: every order in which two servers, the network and etcd can take
//! their steps, up to a number of steps. Requests may be late, lost, or answered to nobody.
//!
//! Sessions are short: a server is taken for gone only when it has none. Those that live on are what a limit may be exceeded
//! by; that is said in the documents, and not looked for here.

use super::fake_etcd::Ignores;
use std::collections::HashSet;

const SERVERS: usize = 2;

/// So many requests at most are under way, those that nobody waits for any more among them.
const UNDER_WAY: usize = 3;

/// So many lives there are at most, of all servers together.
const LIVES: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Request {
    /// If nobody has changed a place since the view.
    Raise {
        view: u8,
        held: u8,
    },
    /// If the own place is as it was then. `Assert` does the same.
    Put {
        own: u8,
        held: u8,
    },
    Look,
    Beat,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Letter {
    life: usize,
    request: Request,
    awaited: bool,
}

/// What etcd knows of one life of a server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Keys {
    server: usize,
    /// Its member key is there.
    member: bool,
    /// It was written not long ago, as others see it.
    fresh: bool,
    places: u8,
    modified: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Server {
    life: usize,
    /// It has not heard that it was taken for gone.
    lives: bool,
    /// Its sessions have their places.
    joined: bool,
    /// It gave a sign of life not long ago, as it sees it.
    recent: bool,
    awaits: bool,
    held: u8,
    sessions: u8,
    /// What it has seen in etcd.
    known: bool,
    view: u8,
    others: u8,
    own: u8,
    own_modified: u8,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    revision: u8,
    lives: Vec<Keys>,
    servers: [Server; SERVERS],
    letters: Vec<Letter>,
}

struct Search {
    max: u8,
    ignores: Ignores,
    never_invalid: bool,
}

impl Search {
    /// How many steps there are until a login goes in over the limit; None if none does within so many.
    fn steps_to_excess(&self, depth: usize) -> Option<usize> {
        let start = State {
            revision: 1,
            lives: Vec::new(),
            servers: [Server::default(); SERVERS],
            letters: Vec::new(),
        };
        let mut start = vec![start];
        for server in 0..SERVERS {
            start = vec![self.after_birth(&start[0], server)];
        }
        for server in &mut start[0].servers {
            server.joined = true;
        }
        let mut seen: HashSet<State> = start.iter().cloned().collect();
        let mut front = start;
        for step in 1..=depth {
            let mut next = Vec::new();
            for state in &front {
                for state in self.successors(state) {
                    let sessions: u8 = state.servers.iter().map(|it| it.sessions).sum();
                    if sessions > self.max {
                        return Some(step);
                    }
                    if seen.insert(state.clone()) {
                        next.push(state);
                    }
                }
            }
            front = next;
        }
        None
    }

    fn successors(&self, state: &State) -> Vec<State> {
        let mut states = Vec::new();
        for server in 0..SERVERS {
            self.steps_of(server, state, &mut states);
        }
        for letter in 0..state.letters.len() {
            let mut lost = state.clone();
            let letter = lost.letters.remove(letter);
            let answered = self.arrive(letter, &lost);
            // The answer may be lost, too.
            let mut unheard = answered.clone();
            unheard.servers = lost.servers;
            states.extend([lost, answered, unheard]);
        }
        states
    }

    /// A new life, of which etcd has the member key. Its sessions get their places later.
    fn after_birth(&self, state: &State, index: usize) -> State {
        let mut state = state.clone();
        state.revision += 1;
        let before = state.servers[index];
        state.servers[index] = Server {
            life: state.lives.len(),
            lives: true,
            recent: true,
            sessions: before.sessions,
            ..Server::default()
        };
        state.lives.push(Keys {
            server: index,
            member: true,
            fresh: true,
            ..Keys::default()
        });
        state
    }

    fn steps_of(&self, index: usize, state: &State, states: &mut Vec<State>) {
        let server = &state.servers[index];
        let keys = &state.lives[server.life];
        let mut after = |change: &dyn Fn(&mut State)| {
            let mut next = state.clone();
            change(&mut next);
            states.push(next);
        };
        // What it holds counts.
        let valid = server.joined && (server.recent || self.never_invalid);
        if valid && server.sessions < server.held {
            after(&|next| next.servers[index].sessions += 1);
        }
        if server.sessions > 0 {
            after(&|next| next.servers[index].sessions -= 1);
        }
        // It has been silent for too long, as it sees it; and later, as others see it.
        if server.recent {
            after(&|next| next.servers[index].recent = false);
        }
        if keys.fresh && (!server.recent || self.never_invalid) {
            after(&|next| next.lives[server.life].fresh = false);
        }
        if keys.member && !keys.fresh && server.sessions == 0 {
            after(&|next| {
                next.lives[server.life].member = false;
                next.revision += 1;
            });
        }
        if server.awaits {
            after(&|next| {
                let server = &mut next.servers[index];
                (server.awaits, server.known) = (false, false);
                (server.view, server.others) = (0, 0);
                for letter in &mut next.letters {
                    letter.awaited &= letter.life != server.life;
                }
            });
            return;
        }
        if !server.lives {
            if state.lives.len() < LIVES {
                states.push(self.after_birth(state, index));
            }
            return;
        }
        if server.sessions <= server.held && !server.joined {
            after(&|next| next.servers[index].joined = true);
        }
        if state.letters.len() == UNDER_WAY {
            return;
        }
        let mut send = |request: Request, held: u8| {
            after(&|next| {
                (next.servers[index].awaits, next.servers[index].held) = (true, held);
                next.letters.push(Letter {
                    life: server.life,
                    request,
                    awaited: true,
                });
                next.letters.sort_unstable();
            });
        };
        let own = server.own_modified;
        let one_more = server.held + 1;
        if valid && one_more + server.others <= self.max {
            let view = server.view;
            let held = one_more;
            send(Request::Raise { view, held }, server.held);
        }
        if server.sessions > server.held {
            let held = server.sessions;
            send(Request::Put { own, held }, server.held);
        }
        if server.known && server.held > server.sessions {
            let held = server.held - 1;
            send(Request::Put { own, held }, held);
        }
        if server.known && server.own > server.held {
            let held = server.held;
            send(Request::Put { own, held }, held);
        }
        if !server.known {
            send(Request::Look, server.held);
        }
        if !server.recent {
            send(Request::Beat, server.held);
        }
    }

    /// A request comes to etcd, and its answer to the server that waits for it.
    fn arrive(&self, letter: Letter, state: &State) -> State {
        let mut state = state.clone();
        let lives = state.lives[letter.life].member;
        let accepted = lives || self.ignores == Ignores::Member;
        let own = state.lives[letter.life].modified;
        // A key that was deleted does not count.
        let kept = state.lives.iter().filter(|keys| keys.places > 0);
        let newest = kept.map(|keys| keys.modified).max();
        let holds = accepted
            && match letter.request {
                Request::Raise { view, .. } => {
                    newest <= Some(view) || self.ignores == Ignores::Range
                }
                Request::Put { own: seen, .. } => seen == own || self.ignores == Ignores::Own,
                Request::Look | Request::Beat => true,
            };
        if let (true, Request::Raise { held, .. } | Request::Put { held, .. }) =
            (holds, letter.request)
        {
            state.revision += 1;
            let revision = state.revision;
            let keys = &mut state.lives[letter.life];
            (keys.places, keys.modified) = (held, if held > 0 { revision } else { 0 });
        }
        if holds && letter.request == Request::Beat {
            state.revision += 1;
            state.lives[letter.life].fresh = true;
        }
        let keys = state.lives[letter.life];
        let revision = state.revision;
        let others = state.lives.iter().enumerate();
        let others = others.filter(|(life, keys)| keys.member && *life != letter.life);
        let others = others.map(|(_, keys)| keys.places).sum();
        let server = &mut state.servers[keys.server];
        if !letter.awaited || server.life != letter.life {
            return state;
        }
        server.awaits = false;
        if !accepted {
            (server.lives, server.joined, server.held) = (false, false, 0);
            return state;
        }
        match letter.request {
            Request::Raise { held, .. } if holds => server.held = held,
            Request::Put { held, .. } if holds => server.held = server.held.max(held),
            Request::Beat => server.recent = true,
            _ => {}
        }
        if letter.request != Request::Beat {
            (server.known, server.view, server.others) = (true, revision, others);
            (server.own, server.own_modified) = (keys.places, keys.modified);
        }
        state
    }
}

/// `SESSION_LIMIT_MODEL_DEPTH` makes it look further.
fn depth() -> usize {
    let depth = std::env::var("SESSION_LIMIT_MODEL_DEPTH").ok();
    depth.and_then(|depth| depth.parse().ok()).unwrap_or(13)
}

fn search(max: u8, ignores: Ignores, never_invalid: bool) -> Option<usize> {
    let search = Search {
        max,
        ignores,
        never_invalid,
    };
    search.steps_to_excess(depth())
}

#[test]
fn in_no_order_does_a_login_go_in_over_the_limit() {
    for max in [1, 2] {
        assert_eq!(search(max, Ignores::Nothing, false), None, "{max}");
    }
}

#[test]
fn without_any_one_condition_there_is_an_order_in_which_one_does() {
    for ignores in [Ignores::Range, Ignores::Own, Ignores::Member] {
        let steps = search(1, ignores, false);
        assert!(steps.is_some(), "{ignores:?}");
    }
    assert!(search(1, Ignores::Nothing, true).is_some());
}
