//! Nothing: the tests are in `tests/kubernetes`, the programs they need in `conformance/load`, `cluster` and `images`.
