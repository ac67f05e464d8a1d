"""One file a verb of the command line, each with a function `main(verb, arguments)`."""
