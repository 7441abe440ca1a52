// What a pod of the cluster's own tests runs: serves HTTP, or reports what it can reach and write.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

const account = "/var/run/secrets/kubernetes.io/serviceaccount/"

func main() {
	if len(os.Args) == 3 && os.Args[1] == "serve" {
		serve(os.Args[2])
	} else if len(os.Args) == 4 && os.Args[1] == "check" {
		check(os.Args[2], os.Args[3])
	} else {
		fmt.Fprintln(os.Stderr, "usage: probe serve ADDRESS | probe check URL FILE")
		os.Exit(2)
	}
}

func serve(address string) {
	http.HandleFunc("/", func(answer http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(answer, "hello")
	})
	fmt.Fprintln(os.Stderr, http.ListenAndServe(address, nil))
	os.Exit(1)
}

// One JSON line: each value is what was found, or the error.
func check(url, file string) {
	report := map[string]any{
		"uid":       os.Getuid(),
		"service":   get(http.DefaultClient, url, ""),
		"apiServer": askAPIServer(),
		"volume":    write(file),
		"rootFS":    write("/written"),
	}
	json.NewEncoder(os.Stdout).Encode(report)
}

func write(file string) string {
	if err := os.WriteFile(file, []byte("hello"), 0o600); err != nil {
		return err.Error()
	}
	return "written"
}

// A verified connection by DNS name; anyone with an account may read /version.
func askAPIServer() string {
	authority, err := os.ReadFile(account + "ca.crt")
	if err != nil {
		return err.Error()
	}
	token, err := os.ReadFile(account + "token")
	if err != nil {
		return err.Error()
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	return get(client, "https://kubernetes.default.svc/version", string(token))
}

func get(client *http.Client, url, token string) string {
	client.Timeout = 5 * time.Second
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := client.Do(request)
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(answer.Body)
	return fmt.Sprintf("%d %s", answer.StatusCode, body)
}
