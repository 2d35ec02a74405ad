// Reads what a container engine would, by the engine's own parsers, and prints it as JSON:
//
//	deployment-parser compose FILE [PROFILE...]   the model of a compose file, variables filled in from the environment
//	deployment-parser dockerfile FILE             the stages of a Dockerfile, and what BuildKit's linter says of it
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

func main() {
	if len(os.Args) < 3 {
		fail(fmt.Errorf("usage: deployment-parser compose|dockerfile FILE"))
	}
	var model any
	var err error
	switch os.Args[1] {
	case "compose":
		model, err = compose(os.Args[2], os.Args[3:])
	case "dockerfile":
		model, err = dockerfile(os.Args[2])
	default:
		err = fmt.Errorf("%s: compose or dockerfile", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(model); err != nil {
		fail(err)
	}
}

func compose(file string, profiles []string) (any, error) {
	options, err := cli.NewProjectOptions([]string{file}, cli.WithOsEnv, cli.WithProfiles(profiles))
	if err != nil {
		return nil, err
	}
	return options.LoadProject(context.Background())
}

type instruction struct {
	Name    string   `json:"name"`
	Text    string   `json:"text"`
	Sources []string `json:"sources,omitempty"`
	To      string   `json:"to,omitempty"`
	From    string   `json:"from,omitempty"`
	Run     string   `json:"run,omitempty"`
}

type stage struct {
	Name         string        `json:"name"`
	Base         string        `json:"base"`
	Instructions []instruction `json:"instructions"`
}

func dockerfile(file string) (any, error) {
	text, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer text.Close()
	tree, err := parser.Parse(text)
	if err != nil {
		return nil, err
	}
	warnings := []string{}
	for _, warning := range tree.Warnings {
		warnings = append(warnings, warning.Short)
	}
	lint := linter.New(&linter.Config{
		Warn: func(rule, description, url, words string, places []parser.Range) {
			warnings = append(warnings, fmt.Sprintf("%s: %s", rule, words))
		},
	})
	parsed, _, err := instructions.Parse(tree.AST, lint)
	if err != nil {
		return nil, err
	}
	stages := []stage{}
	for _, one := range parsed {
		found := stage{Name: one.Name, Base: one.BaseName, Instructions: []instruction{}}
		for _, command := range one.Commands {
			next := instruction{Name: command.Name(), Text: fmt.Sprint(command)}
			switch known := command.(type) {
			case *instructions.CopyCommand:
				next.Sources, next.To, next.From = known.SourcePaths, known.DestPath, known.From
			case *instructions.RunCommand:
				if len(known.CmdLine) > 0 {
					next.Run = known.CmdLine[0]
				}
			case *instructions.WorkdirCommand:
				next.To = known.Path
			case *instructions.UserCommand:
				next.To = known.User
			}
			found.Instructions = append(found.Instructions, next)
		}
		stages = append(stages, found)
	}
	return map[string]any{"stages": stages, "warnings": warnings}, nil
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
