"""Tests of architecture.py; started by architecture.sh."""

import unittest

from architecture import action_problems, circles, context_problems, expanded, graph_problems, included, length_problems


class Graph(unittest.TestCase):
    def test_a_crate_uses_only_what_the_graph_allows(self):
        self.assertEqual(list(graph_problems({"proto": set(), "queue": {"proto", "lapin"}})), [])
        self.assertEqual(list(graph_problems({"proto": {"queue"}, "queue": set()})), ["proto must not use queue"])

    def test_a_coordinator_needs_no_torch_through_another_crate(self):
        problems = list(graph_problems({"coordinator": {"results"}, "results": {"tch"}}))
        self.assertIn("coordinator must not need tch, not even through another crate", problems)


class Length(unittest.TestCase):
    def function(self, lines):
        return "fn long(x: [u8; 4]) {\n" + '    f("}"); // }\n' * (lines - 2) + "}\n"

    def test_a_function_has_at_most_80_lines(self):
        self.assertEqual(list(length_problems("a.rs", self.function(80))), [])
        self.assertEqual(len(list(length_problems("a.rs", self.function(81)))), 1)

    def test_tests_may_be_long(self):
        self.assertEqual(list(length_problems("a.rs", "#[cfg(test)]\nmod tests {\n" + self.function(700) + "}\n")), [])

    def test_a_long_file_says_why(self):
        text = "const A: u8 = 0;\n" * 601
        self.assertEqual(len(list(length_problems("a.rs", text))), 1)
        self.assertEqual(list(length_problems("a.rs", "//! long file: a table\n" + text)), [])

    def test_a_path_to_another_folder_is_found(self):
        self.assertEqual(len(list(length_problems("a.rs", '#[path = "../b.rs"]\nmod b;\n'))), 1)


class Circles(unittest.TestCase):
    def test_use_trees_are_expanded(self):
        self.assertEqual(list(expanded("crate::{a, b::{C, d as e}}")), [("crate", "a"), ("crate", "b", "C"), ("crate", "b", "d")])

    def test_two_modules_that_use_each_other_are_a_circle(self):
        files = {(): "mod a; mod b;", ("a",): "use crate::b::B;", ("b",): "fn f() { super::a::g() }"}
        self.assertEqual(list(circles(files)), [["crate::a", "crate::b"]])

    def test_a_circle_through_a_name_of_the_root_is_found(self):
        files = {(): "pub use a::A;\nmod a;", ("a",): "use crate::b::B;", ("b",): "use crate::A;"}
        self.assertEqual(list(circles(files)), [["crate::a", "crate::b"]])

    def test_a_module_and_what_lies_in_it_may_use_each_other(self):
        files = {(): "", ("a",): "mod b; use self::b::B;", ("a", "b"): "use super::A;"}
        self.assertEqual(list(circles(files)), [])

    def test_tests_and_comments_do_not_count(self):
        files = {(): "", ("a",): "use crate::b::B;", ("b",): "// crate::a\n#[cfg(test)]\nmod tests { use crate::a::A; }"}
        self.assertEqual(list(circles(files)), [])


class Actions(unittest.TestCase):
    def test_an_action_is_named_by_its_commit(self):
        for action in ["actions/checkout@" + "0a" * 20 + " # v4.4.0", "./own"]:
            self.assertEqual(list(action_problems("ci", f"      - uses: {action}\n")), [])
        for action in ["actions/checkout@v4", "actions/checkout", '"a/b@' + "0a" * 20 + '0"', "a/b@main # " + "0a" * 20]:
            self.assertEqual(len(list(action_problems("ci", f"      - uses: {action}\n"))), 1, action)


class Context(unittest.TestCase):
    IGNORE = "*\n!crates\n!infra/images\n!LICENSE-*\n"

    def problems(self, *needed, ignore=IGNORE, exists=lambda pattern: True):
        return list(context_problems(ignore, needed, exists))

    def test_what_is_let_in_by_its_name_a_pattern_or_a_folder_above_it_is_there(self):
        self.assertEqual(self.problems("crates/store", "crates", "infra/images/sbom.py", "LICENSE-MIT"), [])

    def test_a_crate_that_a_container_build_would_miss_is_found(self):
        for path in ["kernels", "infra/libtorch", "crates2", "infra"]:
            [problem] = self.problems("crates/store", path)
            self.assertIn(f"ignores {path},", problem)

    def test_a_line_for_what_is_gone_is_found(self):
        [problem] = self.problems(exists=lambda pattern: pattern != "crates")
        self.assertIn("lets in crates,", problem)

    def test_a_file_that_lets_in_everything_else_is_no_list(self):
        self.assertEqual(len(self.problems("crates", ignore="target\n")), 1)

    def test_files_that_code_includes_are_found_and_those_of_tests_are_not(self):
        text = 'const A: &str = include_str!("../a.txt");\n// include_str!("b")\n#[cfg(test)]\nmod tests { const C: &[u8] = include_bytes!("c"); }'
        self.assertEqual(list(included(text)), ["../a.txt"])


if __name__ == "__main__":
    unittest.main()
