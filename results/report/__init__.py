"""Tables and figures of the suite, made from runs alone: a module a topic, as the pages are."""
