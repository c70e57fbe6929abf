// Asks OPA's own engine.
//
//	export GOMODCACHE=$(go env GOMODCACHE)
//	go run . unstrict > ../unstrict.json   what OPA answers to the cases that want a strict error,
//	                                       where errors of built-ins leave an expression undefined
//	go run . ask < questions.jsonl         what OPA answers to each question, one JSON object a line
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sort"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/test/cases"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// Answer is a set of bindings, or an error.
type Answer struct {
	Results []map[string]any `json:"results,omitempty"`
	Error   string           `json:"error,omitempty"`
	Message string           `json:"message,omitempty"`
}

// Question is one of "ask".
type Question struct {
	Modules []string        `json:"modules"`
	V1      bool            `json:"v1"`
	Data    *map[string]any `json:"data"`
	Input   *any            `json:"input"`
	Query   string          `json:"query"`
}

func ask(version ast.RegoVersion, tc cases.TestCase) (answer Answer) {
	defer func() {
		if r := recover(); r != nil {
			answer = Answer{Error: "load", Message: fmt.Sprint(r)}
		}
	}()
	options := ast.ParserOptions{RegoVersion: version}
	if tc.ExperimentalKeywords {
		options.Capabilities = ast.CapabilitiesForThisVersion(ast.CapabilitiesExperimentalKeywords(true))
	}
	modules := map[string]string{}
	for i, module := range tc.Modules {
		modules[fmt.Sprintf("test-%d.rego", i)] = module
	}
	compiler, err := ast.CompileModulesWithOpt(modules, ast.CompileOpts{ParserOptions: options})
	if err != nil {
		return Answer{Error: "load", Message: err.Error()}
	}
	query, err := compiler.QueryCompiler().Compile(ast.MustParseBody(tc.Query))
	if err != nil {
		return Answer{Error: "load", Message: err.Error()}
	}
	store := inmem.New()
	if tc.Data != nil {
		store = inmem.NewFromObject(*tc.Data)
	}
	ctx := context.Background()
	txn := storage.NewTransactionOrDie(ctx, store)
	var input *ast.Term
	if tc.InputTerm != nil {
		input = ast.MustParseTerm(*tc.InputTerm)
	} else if tc.Input != nil {
		input = ast.NewTerm(ast.MustInterfaceToValue(*tc.Input))
	}
	rs, err := topdown.NewQuery(query).WithCompiler(compiler).WithStore(store).
		WithTransaction(txn).WithInput(input).Run(ctx)
	if err != nil {
		var e *topdown.Error
		if errors.As(err, &e) {
			return Answer{Error: e.Code, Message: e.Message}
		}
		return Answer{Error: "error", Message: err.Error()}
	}
	answer.Results = []map[string]any{}
	for _, bindings := range rs {
		row := map[string]any{}
		for name, term := range bindings {
			value, err := ast.JSON(term.Value)
			if err != nil {
				return Answer{Error: "error", Message: err.Error()}
			}
			row[string(name)] = value
		}
		answer.Results = append(answer.Results, row)
	}
	return answer
}

// folder is where the module cache keeps OPA's cases.
func folder() string {
	root := os.Getenv("GOMODCACHE")
	info, _ := debug.ReadBuildInfo()
	for _, dependency := range info.Deps {
		if dependency.Path == "github.com/open-policy-agent/opa" {
			return filepath.Join(root, dependency.Path+"@"+dependency.Version, "v1/test/cases/testdata")
		}
	}
	panic("not built with OPA")
}

func unstrict() map[string]Answer {
	answers := map[string]Answer{}
	for name, version := range map[string]ast.RegoVersion{"v0": ast.RegoV0, "v1": ast.RegoV1} {
		seen := map[string]int{}
		for _, tc := range cases.MustLoad(filepath.Join(folder(), name)).Cases {
			key := name + "/" + tc.Note
			seen[key]++
			if seen[key] > 1 {
				key = fmt.Sprintf("%s #%d", key, seen[key])
			}
			if tc.StrictError {
				answers[key] = ask(version, tc)
			}
		}
	}
	return answers
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "unstrict" {
		answers := unstrict()
		names := slices.Collect(maps.Keys(answers))
		sort.Strings(names)
		fmt.Println("{")
		for i, name := range names {
			key, _ := json.Marshal(name)
			answer := answers[name]
			answer.Message = ""
			value, _ := json.Marshal(answer)
			comma := ","
			if i == len(names)-1 {
				comma = ""
			}
			fmt.Printf("%s: %s%s\n", key, value, comma)
		}
		fmt.Println("}")
		return
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<26)
	for lines.Scan() {
		var q Question
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			panic(err)
		}
		version := ast.RegoV0
		if q.V1 {
			version = ast.RegoV1
		}
		answer := ask(version, cases.TestCase{Modules: q.Modules, Data: q.Data, Input: q.Input, Query: q.Query})
		out, _ := json.Marshal(answer)
		fmt.Println(string(out))
	}
}
