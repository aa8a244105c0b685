pub(crate) const TESTS: &[sandpail_e2e::Test] = &[];
