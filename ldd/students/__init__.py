"""Students: networks trained on a set by a protocol, to judge the set by what they learn."""
