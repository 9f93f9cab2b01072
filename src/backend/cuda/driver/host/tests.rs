#![allow(clippy::unwrap_used, unsafe_code)]

use super::*;

const ORDERS: [Order; 4] = [Order::Ascending, Order::Descending, Order::Random(1), Order::Random(2)];

fn device(code: i64, op: &'static str) -> BackendError {
    BackendError::Device { op, code }
}

fn upload(driver: &HostDriver, words: &[u32]) -> Result<Address, BackendError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let (stream, to) = (driver.create_stream()?, driver.allocate(bytes.len() as u64)?);
    // SAFETY: `bytes.len()` bytes were allocated at `to`.
    unsafe { driver.upload(stream, to, &bytes)? };
    driver.destroy_stream(stream);
    Ok(to)
}

fn download(driver: &HostDriver, from: Address, words: usize) -> Result<Vec<u32>, BackendError> {
    let stream = driver.create_stream()?;
    let mut bytes = vec![0; 4 * words];
    // SAFETY: the driver checks the bounds at `from`.
    unsafe { driver.download(stream, &mut bytes, from)? };
    driver.destroy_stream(stream);
    Ok(bytes.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect())
}

fn launch(
    driver: &HostDriver,
    kernel: &'static str,
    block: u32,
    shared: u32,
    arguments: &[Argument],
) -> Result<(), BackendError> {
    let stream = driver.create_stream()?;
    // SAFETY: the tests pass what check.h requires, or what the driver refuses.
    unsafe { driver.launch(stream, Launch { kernel, grid: (2, 1), block, shared, arguments })? };
    driver.synchronize(stream)
}

#[test]
fn kernels_have_names() {
    let names = kernels();
    assert!(names.contains(&"check_barrier"), "{names:?}");
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
}

fn block_sums(kernel: &'static str) -> Vec<Vec<u32>> {
    let in_order = |order| {
        let driver = HostDriver::new(order);
        let squares: Vec<u32> = (0..256).map(|i| i * i).collect();
        let (squares, sums) = (upload(&driver, &squares).unwrap(), driver.allocate(8).unwrap());
        launch(&driver, kernel, 256, 1024, &[Argument::Pointer(squares), Argument::Pointer(sums)]).unwrap();
        download(&driver, sums, 2).unwrap()
    };
    ORDERS.map(in_order).to_vec()
}

#[test]
fn a_kernel_gives_the_same_in_all_orders() {
    assert_eq!(block_sums("check_barrier"), vec![vec![5_559_680; 2]; 4]);
}

#[test]
fn a_missing_barrier_shows() {
    assert!(block_sums("check_missing_barrier").iter().any(|sums| *sums != [5_559_680; 2]));
}

#[test]
fn a_divergent_barrier_is_an_error_of_this_and_all_later_calls() {
    for order in ORDERS {
        let driver = HostDriver::new(order);
        let out = driver.allocate(256).unwrap();
        let expected = device(5, "check_divergent_barrier");
        let result = launch(&driver, "check_divergent_barrier", 64, 0, &[Argument::Pointer(out)]);
        assert_eq!(result, Err(expected.clone()));
        assert_eq!(driver.create_stream(), Err(expected.clone()));
        assert_eq!(driver.free_memory(), Err(expected));
        let fault = driver.fault().unwrap();
        assert!(fault.contains("kernel check_divergent_barrier, block ("), "{fault}");
    }
}

#[test]
fn what_a_launch_gets_wrong_is_told() {
    let fails = |kernel: &'static str, block, arguments: &[Argument], code, words: &str| {
        let driver = HostDriver::new(Order::Ascending);
        assert_eq!(launch(&driver, kernel, block, 0, arguments), Err(device(code, kernel)));
        let fault = driver.fault().unwrap();
        assert!(fault.contains(words), "{fault}");
    };
    fails("no_such_kernel", 32, &[], 1, "no kernel is called no_such_kernel");
    fails("check_trap", 32, &[], 2, "expected 1, got 0");
    fails("check_trap", 32, &[Argument::Pointer(Address(0))], 2, "expected a number, got a pointer");
    fails("check_trap", 33, &[Argument::U32(0)], 3, "expected 1 to 32, got 33");
    fails("check_trap", 32, &[Argument::U32(9)], 8, "thread 9 called __trap");
    fails("check_words", 1, &[Argument::Pointer(Address(16))], ILLEGAL_ADDRESS, "points to no allocation");
    let driver = HostDriver::new(Order::Ascending).with_shared_per_block(1024);
    let what = "bytes of shared memory of a block";
    let expected = BackendError::TooSmall { what, needed: 1025, available: 1024 };
    assert_eq!(launch(&driver, "check_trap", 32, 1025, &[Argument::U32(0)]), Err(expected));
}

// The sanitizer ends the process at such a write: scripts/kernels.sh runs this test alone and checks that it does.
#[test]
fn stray_writes_are_noticed() {
    let driver = HostDriver::new(Order::Ascending);
    let out = driver.allocate(4 * 63).unwrap();
    let result = launch(&driver, "check_indices", 32, 0, &[Argument::Pointer(out)]);
    assert_eq!(result, Err(device(ILLEGAL_ADDRESS, "check_indices")));
    assert_eq!(driver.fault().unwrap(), "check_indices: byte 252 of an allocation was written: expected 0 to 252");

    let driver = HostDriver::new(Order::Ascending);
    assert_eq!(launch(&driver, "check_overrun", 32, 40, &[Argument::U32(40)]), Err(device(7, "check_overrun")));
    assert!(driver.fault().unwrap().contains("byte 40 of shared memory: expected 40 bytes at most"));
}

#[test]
fn memory_begins_with_a_pattern_and_zero_clears_it() {
    let driver = HostDriver::new(Order::Ascending);
    let (stream, at) = (driver.create_stream().unwrap(), driver.allocate(16).unwrap());
    assert_eq!(at.0 % 256, 0);
    assert_eq!(download(&driver, at, 4).unwrap(), [0xd7d7_d7d7; 4]);
    // SAFETY: 8 bytes from the fourth byte on lie within the allocation.
    unsafe { driver.zero(stream, Address(at.0 + 4), 8).unwrap() };
    assert_eq!(download(&driver, at, 4).unwrap(), [0xd7d7_d7d7, 0, 0, 0xd7d7_d7d7]);
}

#[test]
fn copies_stay_within_one_allocation() {
    let driver = HostDriver::new(Order::Ascending);
    let stream = driver.create_stream().unwrap();
    let (first, _second) = (driver.allocate(16).unwrap(), driver.allocate(16).unwrap());
    let mut bytes = [0; 17];
    let small = |op, available| Err(BackendError::TooSmall { what: op, needed: 17, available });
    // SAFETY: all of these are refused.
    unsafe {
        assert_eq!(driver.upload(stream, first, &bytes), small("upload", 16));
        assert_eq!(driver.download(stream, &mut bytes, Address(first.0 + 1)), small("download", 15));
        assert_eq!(driver.zero(stream, Address(first.0 + 16), 17), small("zero", 0));
        assert_eq!(driver.zero(stream, Address(first.0 + 17), 1), Err(device(INVALID_VALUE, "zero")));
        assert_eq!(driver.zero(stream, Address(first.0 - 1), 1), Err(device(INVALID_VALUE, "zero")));
        assert_eq!(driver.upload(Stream(99), first, &[]), Err(device(INVALID_HANDLE, "upload")));
    }
    assert_eq!(driver.fault(), None);
}

#[test]
fn memory_ends_and_comes_back() {
    let driver = HostDriver::new(Order::Ascending).with_memory(1000);
    let first = driver.allocate(600).unwrap();
    assert_eq!(driver.free_memory(), Ok(400));
    assert_eq!(driver.allocate(401), Err(BackendError::OutOfMemory { needed: 401, free: 400 }));
    // SAFETY: allocated above and not used again.
    unsafe { driver.release(first) };
    assert_eq!((driver.free_memory(), driver.used()), (Ok(1000), 0));
    // SAFETY: the driver notices that there is no allocation at this address.
    unsafe { driver.release(first) };
    assert_eq!(driver.allocate(1), Err(device(INVALID_VALUE, "release")));
}

/// Returns what one stream reads of a word that another sets to zero, with and without waiting for it.
fn read_beside(order: Order, waits: bool, as_one: bool) -> u32 {
    let driver = HostDriver::new(order);
    let (one, other) = (driver.create_stream().unwrap(), driver.create_stream().unwrap());
    let at = upload(&driver, &[7, 7]).unwrap();
    let [from, to] = [at, Address(at.0 + 4)];
    let work = || {
        let begun = driver.record(one)?;
        // SAFETY: there is a word at `from`.
        unsafe { driver.zero(one, from, 4)? };
        let done = driver.record(one)?;
        driver.wait(other, if waits { done } else { begun })?;
        let arguments = [Argument::Pointer(from), Argument::Pointer(to)];
        // The sum of one word is a copy of it.
        let (kernel, grid) = ("check_barrier", (1, 1));
        // SAFETY: the kernel reads one word and writes one, and has one word of shared memory.
        unsafe { driver.launch(other, Launch { kernel, grid, block: 1, shared: 4, arguments: &arguments })? };
        let copied = driver.record(other)?;
        driver.wait(one, copied)
    };
    if as_one {
        let graph = driver.graph(one, &mut || work()).unwrap();
        assert_eq!(download(&driver, at, 2).unwrap(), [7, 7], "captured work does not run");
        // SAFETY: the graph's memory still exists.
        unsafe { driver.run(one, graph).unwrap() };
        driver.destroy_graph(graph);
    } else {
        work().unwrap();
    }
    driver.synchronize(one).unwrap();
    let [first, copied] = download(&driver, at, 2).unwrap()[..] else { panic!("two words") };
    assert_eq!(first, 0);
    copied
}

#[test]
fn a_missing_wait_between_streams_shows() {
    for as_one in [false, true] {
        assert!(ORDERS.iter().all(|order| read_beside(*order, true, as_one) == 0));
        let seen: Vec<u32> = (1..9).map(|seed| read_beside(Order::Random(seed), false, as_one)).collect();
        assert!(seen.contains(&7), "{seen:?}");
        assert_eq!(read_beside(Order::Descending, false, as_one), 7);
    }
}

#[test]
fn graphs_run_again_and_only_on_memory_that_is_there() {
    for order in ORDERS {
        let driver = HostDriver::new(order);
        let stream = driver.create_stream().unwrap();
        let at = upload(&driver, &[1, 2]).unwrap();
        // SAFETY: there is a word at `at`.
        let graph = driver.graph(stream, &mut || unsafe { driver.zero(stream, at, 4) }).unwrap();
        for _ in 0..2 {
            // SAFETY: there are two words at `at`; the graph's memory still exists.
            unsafe {
                driver.upload(stream, at, &[1; 8]).unwrap();
                driver.run(stream, graph).unwrap();
            }
            driver.synchronize(stream).unwrap();
            assert_eq!(download(&driver, at, 2).unwrap(), [0, 0x0101_0101]);
        }
        let unsupported = |op| Err(device(900, op));
        let refused = driver.graph(stream, &mut || {
            assert_eq!(driver.synchronize(stream), unsupported("synchronize"));
            // SAFETY: the driver refuses this.
            assert_eq!(unsafe { driver.run(stream, graph) }, unsupported("run"));
            // SAFETY: the driver refuses this.
            unsafe { driver.upload(stream, at, &[0; 4]) }
        });
        assert_eq!(refused, unsupported("upload").map(|()| graph));
        // SAFETY: allocated above; the driver refuses what the graph does with it afterwards.
        unsafe {
            driver.release(at);
            let ran = driver.run(stream, graph).and_then(|()| driver.synchronize(stream));
            assert_eq!(ran, Err(device(INVALID_VALUE, "zero")));
        }
        driver.destroy_graph(graph);
        // SAFETY: the driver refuses this.
        assert!(unsafe { driver.run(stream, graph) }.is_err());
    }
}

#[test]
fn events_have_times_and_an_order() {
    let driver = HostDriver::new(Order::Ascending);
    let (one, other) = (driver.create_stream().unwrap(), driver.create_stream().unwrap());
    let first = driver.record(one).unwrap();
    let second = driver.record(one).unwrap();
    assert_eq!(driver.wait(other, first), Ok(()));
    assert!(driver.elapsed(first, second).unwrap() >= 0.0);
    driver.destroy_event(first);
    assert_eq!(driver.wait(other, first), Err(device(INVALID_HANDLE, "wait")));
    driver.destroy_stream(other);
    assert_eq!(driver.record(other), Err(device(INVALID_HANDLE, "record")));
}
