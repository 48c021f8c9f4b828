"""Layer 3: models as files that outlive the run folder. (Not `export`: that name is the public function.)"""
