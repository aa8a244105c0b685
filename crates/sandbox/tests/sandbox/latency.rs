//! Not a test of speed, which belongs to the benches: prints what the parts of a life cost.

use std::time::Instant;

use crate::world::{World, run};

crate::tests![figures];

async fn figures() {
    let world = World::new();
    world.sandbox().await.destroy().await.unwrap();
    let mut figures: Vec<(&str, Vec<u128>)> =
        ["create", "first exec", "exec", "destroy"].map(|name| (name, Vec::new())).into();
    for _ in 0..20 {
        let mut note = |index: usize, start: Instant| figures[index].1.push(start.elapsed().as_micros());
        let start = Instant::now();
        let sandbox = world.sandbox().await;
        note(0, start);
        let start = Instant::now();
        assert_eq!(run(&sandbox, &["true"]).await.code, 0);
        note(1, start);
        for _ in 0..5 {
            let start = Instant::now();
            assert_eq!(run(&sandbox, &["true"]).await.code, 0);
            note(2, start);
        }
        let start = Instant::now();
        sandbox.destroy().await.unwrap();
        note(3, start);
    }
    for (name, mut values) in figures {
        values.sort_unstable();
        println!("  {name}: p50 {} us, p95 {} us", values[values.len() / 2], values[values.len() * 95 / 100]);
    }
}
