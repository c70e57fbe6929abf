// Command promql reads PromQL expressions from standard input, one JSON string each, and prints for
// each a JSON object: the selectors of series in it, the labels that it groups or joins by, or the
// error of the parser. It is Prometheus's own parser, so an expression that it accepts is one that
// Prometheus evaluates.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

type matcher struct {
	Label string `json:"label"`
	Op    string `json:"op"`
	Value string `json:"value"`
}

type selector struct {
	Name     string    `json:"name"`
	Matchers []matcher `json:"matchers"`
	// The functions and aggregations around the selector, the outermost first.
	Functions []string `json:"functions"`
}

type answer struct {
	Selectors []selector `json:"selectors"`
	Grouping  []string   `json:"grouping"`
	Error     string     `json:"error,omitempty"`
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "promql:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	expressions, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var expression string
		if err := expressions.Decode(&expression); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := answers.Encode(inspect(expression)); err != nil {
			return err
		}
	}
}

func inspect(expression string) answer {
	found := answer{Selectors: []selector{}, Grouping: []string{}}
	tree, err := parser.NewParser(parser.Options{}).ParseExpr(expression)
	if err != nil {
		found.Error = err.Error()
		return found
	}
	parser.Inspect(tree, func(node parser.Node, path []parser.Node) error {
		switch node := node.(type) {
		case *parser.AggregateExpr:
			found.Grouping = append(found.Grouping, node.Grouping...)
		case *parser.BinaryExpr:
			if node.VectorMatching != nil {
				found.Grouping = append(found.Grouping, node.VectorMatching.MatchingLabels...)
				found.Grouping = append(found.Grouping, node.VectorMatching.Include...)
			}
		case *parser.VectorSelector:
			found.Selectors = append(found.Selectors, describe(node, path))
		}
		return nil
	})
	return found
}

func describe(node *parser.VectorSelector, path []parser.Node) selector {
	one := selector{Name: node.Name, Matchers: []matcher{}, Functions: []string{}}
	for _, it := range node.LabelMatchers {
		if it.Name == labels.MetricName {
			one.Name = it.Value
			continue
		}
		one.Matchers = append(one.Matchers, matcher{it.Name, it.Type.String(), it.Value})
	}
	for _, above := range path {
		switch above := above.(type) {
		case *parser.Call:
			one.Functions = append(one.Functions, above.Func.Name)
		case *parser.AggregateExpr:
			one.Functions = append(one.Functions, above.Op.String())
		}
	}
	return one
}
