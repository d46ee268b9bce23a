//! A semaphore in memory that a parent and its child share: it guards a counter, and hands over items.

use crate::{Addr, Calls, Errno, MapFlags, System};

/// A semaphore: a word in memory that sleepers wait for.
#[derive(Clone, Copy)]
struct Semaphore(Addr);

impl Semaphore {
    /// Takes one, when there is one.
    fn wait<S: System>(self, sys: &S) -> Result<(), Errno> {
        loop {
            let now = sys.load_atomic(self.0);
            if now == 0 {
                sys.futex_wait(self.0, 0)?;
            } else if sys.compare_exchange(self.0, now, now - 1) == now {
                return Ok(());
            }
        }
    }

    /// Gives one.
    fn post<S: System>(self, sys: &S) -> Result<(), Errno> {
        sys.fetch_add(self.0, 1);
        sys.futex_wake(self.0, 1).map(drop)
    }
}

const ROUNDS: u32 = 100;
const PLACES: u32 = 4;

/// What the two share: a counter with its guard, and a ring of places, which are free or hold an item.
#[derive(Clone, Copy)]
struct Shared {
    guard: Semaphore,
    counter: Addr,
    free: Semaphore,
    items: Semaphore,
    ring: Addr,
}

impl Shared {
    /// Counts, in a way that loses rounds if two do it at a time.
    fn count<S: System>(self, sys: &S) -> Result<(), Errno> {
        for _ in 0..ROUNDS {
            self.guard.wait(sys)?;
            let counter = sys.load_u32(self.counter);
            sys.sched_yield();
            sys.store_u32(self.counter, counter + 1);
            self.guard.post(sys)?;
        }
        Ok(())
    }

    fn place(self, item: u32) -> Addr {
        self.ring + u64::from(item % PLACES) * 4
    }

    fn produce<S: System>(self, sys: &S) -> Result<(), Errno> {
        for item in 0..ROUNDS {
            self.free.wait(sys)?;
            sys.store_u32(self.place(item), item * item);
            self.items.post(sys)?;
        }
        Ok(())
    }

    fn consume<S: System>(self, sys: &S) -> Result<u32, Errno> {
        let mut sum = 0;
        for item in 0..ROUNDS {
            self.items.wait(sys)?;
            sum += sys.load_u32(self.place(item));
            self.free.post(sys)?;
        }
        Ok(sum)
    }
}

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    let memory = sys.map_anonymous(4096, MapFlags::SHARED)?;
    let shared = Shared {
        guard: Semaphore(memory),
        counter: memory + 64,
        free: Semaphore(memory + 128),
        items: Semaphore(memory + 192),
        ring: memory + 256,
    };
    sys.store_u32(shared.guard.0, 1);
    sys.store_u32(shared.free.0, PLACES);
    sys.fork(move |sys| match shared.count(sys).and_then(|()| shared.produce(sys)) {
        Ok(()) => 0,
        Err(errno) => errno.0,
    })?;
    shared.count(sys)?;
    let sum = shared.consume(sys)?;
    let (_, status) = sys.wait()?;
    say!(sys, "semaphore: two counted to {}", sys.load_u32(shared.counter));
    say!(sys, "semaphore: {ROUNDS} items through {PLACES} places make {sum}");
    say!(sys, "semaphore: the child: {status:?}");
    sys.munmap(memory, 4096)
}
